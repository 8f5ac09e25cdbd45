"""Ray clusters: those that are there, and a head of our own on this machine."""
