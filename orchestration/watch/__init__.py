"""Alarms for rewards that lie and for training that goes wrong: pure functions of what a run already records."""
