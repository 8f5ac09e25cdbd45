"""From a model's name to folders that vLLM, transformers and peft load."""
