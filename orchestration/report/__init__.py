"""What a person sees of a run: the live view, plain lines, the summary."""
