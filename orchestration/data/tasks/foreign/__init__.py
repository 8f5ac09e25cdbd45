"""Tasks whose worlds are other people's environments, called by name."""
