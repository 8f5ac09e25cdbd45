"""Evaluations that can be believed: what is asked, how it is counted, and what may be claimed of it."""
