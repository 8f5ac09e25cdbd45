"""SageMaker HyperPod: RayJobs of a Kubernetes cluster."""
