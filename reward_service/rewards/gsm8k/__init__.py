"""The rewards of an answer line, `#### The final answer is N`: whether it is there, and whether it is right."""
