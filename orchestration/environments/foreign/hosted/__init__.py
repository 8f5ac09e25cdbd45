"""What runs in the Python that has `verifiers`, and imports nothing of ours: scripts, started by path."""
