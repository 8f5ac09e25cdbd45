"""The built-in tasks, one file each: a file here that registers a task is all there is to add."""
