"""Whole runs, by the command line."""
