"""Worlds that a model acts in, turn by turn: what one is, tools, and the worlds that we bring."""
