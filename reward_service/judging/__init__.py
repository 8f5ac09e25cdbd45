"""Asking a language model for a grade: prompt, call, reading of the answer, aggregation, cache."""
