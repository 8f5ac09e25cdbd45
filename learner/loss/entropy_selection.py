"""Which tokens are uncertain enough to learn from (Beyond the 80/20 rule, arXiv 2506.01939)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def step_entropy_threshold(entropies: Tensor, top_entropy_quantile: float) -> float:
    """The entropy that the top `top_entropy_quantile` of the tokens reach: their (1 − top_entropy_quantile) quantile,
    linear between neighbours, as `torch.quantile` has it, which refuses more than 16 million values.

    Example: entropies 0, 1, 2, 3, 4 and 0.5: threshold 2, and three of the five are kept.

    Args:
        entropies: Those of all completion tokens of the step, over all micro-batches and ranks, any shape; nats.
        top_entropy_quantile: The share of them that is kept, above 0.

    Returns:
        Infinity where there are no tokens.
    """
    values = entropies.flatten().to(torch.promote_types(entropies.dtype, torch.float32))
    if not len(values):
        return math.inf
    position = (1.0 - top_entropy_quantile) * (len(values) - 1)
    below = math.floor(position)
    lower = values.kthvalue(below + 1).values
    upper = values.kthvalue(min(below + 1, len(values) - 1) + 1).values
    return float(torch.lerp(lower, upper, position - below))
