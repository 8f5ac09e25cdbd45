"""Modules that score a few answers when they are imported, so that what libraries make at their first use is made once,
in the server of forks: a reward names its own under `preload`."""
