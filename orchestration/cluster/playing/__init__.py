"""Environments in actors of their own."""
