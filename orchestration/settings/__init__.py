"""A run's settings: their types, and how they are read."""
