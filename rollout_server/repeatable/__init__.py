"""What makes a run the same again: a seed for each completion, and prompts that begin together."""
