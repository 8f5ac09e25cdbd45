"""A run in the pages of Ray's dashboard."""
