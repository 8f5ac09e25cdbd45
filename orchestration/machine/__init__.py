"""What the machine has, what a run needs, and who goes where."""
