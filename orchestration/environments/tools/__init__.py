"""Functions that a model may call between its turns: what one is, how a call is written, and those that we bring."""
