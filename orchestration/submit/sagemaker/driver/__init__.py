"""What SageMaker's training script starts on every host. The folder is sent as it is, apart from the other code."""
