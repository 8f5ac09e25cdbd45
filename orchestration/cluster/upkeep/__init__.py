"""Keeping what a run is made of alive: who hangs, how often something may start again, and what takes its place."""
