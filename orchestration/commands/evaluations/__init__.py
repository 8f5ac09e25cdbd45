"""`rlvr eval`, `rlvr claim` and `rlvr sweep`: what was learned, and what may be said of it."""
