"""The reward service: a FastAPI application that scores completions by verifiable rewards."""
