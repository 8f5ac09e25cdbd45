"""What a run's folder proves: where a completion came from and went to, and whether its files belong together."""
