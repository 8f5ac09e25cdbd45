"""How the `tiny` model is made. Apart from its training, which loads torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TinySettings:
    """How the model is made; models of different settings lie in different cache folders."""

    seed: int = 0
    vocab_size: int = 384
    """256 bytes, three special tokens, and the commonest pieces of our own problems."""
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    """Heads of 32: the smallest size vLLM's CPU attention takes."""
    num_kv_heads: int = 2
    intermediate_size: int = 512
    warm_start_steps: int = 150
    batch_size: int = 32
    learning_rate: float = 3e-3
