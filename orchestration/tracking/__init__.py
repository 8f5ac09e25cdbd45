"""Runs in other people's trackers: TensorBoard, MLflow, Weights & Biases, Trackio."""
