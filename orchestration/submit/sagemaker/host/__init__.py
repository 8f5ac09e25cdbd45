"""What runs on the hosts of a SageMaker training job."""
