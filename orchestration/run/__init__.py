"""The run itself: flow, loop, scores, evaluation, what it writes."""
