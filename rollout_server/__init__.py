"""Rollout workers: vLLM engines that generate grouped completions on the newest adapter version."""
