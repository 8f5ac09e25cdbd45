"""Sequences as a prefix tree, and attention over it."""
