"""The learner: GRPO updates of a LoRA adapter on a frozen base, under DeepSpeed."""
