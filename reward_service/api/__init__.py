"""The service as a FastAPI application: bodies, endpoints, protocols, metrics."""
