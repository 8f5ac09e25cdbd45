"""`rlvr bench …`: measurements as ratios, printed as one JSON object."""
