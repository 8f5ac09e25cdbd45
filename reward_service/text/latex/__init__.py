"""Answers in LaTeX or plain mathematics, read into exact values and compared: what the reward `math` is made of."""
