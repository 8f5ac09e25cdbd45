"""The reward service of a run: where it starts, and how it is kept alive."""
