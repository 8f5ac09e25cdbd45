"""Worker processes that score, and that can be killed."""
