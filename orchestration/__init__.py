"""The loop, placement, configuration and command line."""
