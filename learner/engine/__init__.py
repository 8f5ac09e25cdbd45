"""Training by DeepSpeed, learning-rate schedules, and the state of both."""
