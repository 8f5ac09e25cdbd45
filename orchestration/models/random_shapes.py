"""Models of known shapes with random weights, such as `random:qwen2.5-0.5b`: for measuring, without a hub.

Apart from their making, which loads torch.
"""

from __future__ import annotations

from dataclasses import dataclass

RANDOM_PREFIX = "random:"


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomShape:
    """A Qwen2 network: what decides its work and its memory."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    tied_embeddings: bool
    context: int = 32_768

    @property
    def num_parameters(self) -> int:
        """Weights, biases of queries, keys and values, and norms; tied embeddings count once."""
        hidden, kv = self.hidden_size, self.num_kv_heads * (self.hidden_size // self.num_heads)
        attention = 2 * hidden * hidden + 2 * hidden * kv + hidden + 2 * kv
        layer = attention + 3 * hidden * self.intermediate_size + 2 * hidden
        return self.num_layers * layer + hidden + (1 if self.tied_embeddings else 2) * self.vocab_size * hidden


RANDOM_SHAPES = {
    "qwen2.5-0.5b": RandomShape(
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        vocab_size=151_936,
        tied_embeddings=True,
    ),
    "qwen2.5-1.5b": RandomShape(
        hidden_size=1536,
        intermediate_size=8960,
        num_layers=28,
        num_heads=12,
        num_kv_heads=2,
        vocab_size=151_936,
        tied_embeddings=True,
    ),
    "qwen2.5-7b": RandomShape(
        hidden_size=3584,
        intermediate_size=18_944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        vocab_size=152_064,
        tied_embeddings=False,
    ),
}


def random_shape(name: str) -> RandomShape | None:
    """The shape that a model's name asks for; None where it asks for none that is known."""
    return RANDOM_SHAPES.get(name.removeprefix(RANDOM_PREFIX)) if name.startswith(RANDOM_PREFIX) else None


def random_names() -> list[str]:
    """What can be asked for."""
    return [f"{RANDOM_PREFIX}{name}" for name in RANDOM_SHAPES]
