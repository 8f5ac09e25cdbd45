"""What one sequence has of a step's gradient: its own part of the sum, computed alone.

The step's gradient g is the sum of the sequences' gradients g_i, whose denominators are those of the whole step. So
<g_i, g> / <g, g> is a share: over all sequences it sums to 1, and it is negative where a sequence pulls the other way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class GradientShare(NamedTuple):
    """Of one sequence, before clipping."""

    share: float
    """<g_i, g> / <g, g>."""
    norm: float
    """|g_i|."""
    step_norm: float
    """|g| of all sequences."""
    cosine: float
    """Between g_i and g."""


def gradient_share(
    own: Callable[[], Tensor], all_parts: Iterable[Callable[[], Tensor]], parameters: Sequence[Tensor]
) -> GradientShare:
    """Args:
    own: The loss of the sequence alone, with the step's denominators.
    all_parts: Losses that add up to the step's.
    parameters: Those that are trained.
    """
    whole: list[Tensor] = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    for part in all_parts:
        for total, gradient in zip(whole, _gradients(part(), parameters), strict=True):
            total.add_(gradient)
    mine = _gradients(own(), parameters)
    norm, step_norm = _norm(mine), _norm(whole)
    dot = sum(float((a * b).sum()) for a, b in zip(mine, whole, strict=True))
    return GradientShare(
        share=dot / step_norm**2 if step_norm else 0.0,
        norm=norm,
        step_norm=step_norm,
        cosine=dot / (norm * step_norm) if norm and step_norm else 0.0,
    )


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        torch.zeros_like(parameter, dtype=torch.float64) if gradient is None else gradient.double()
        for gradient, parameter in zip(found, parameters, strict=True)
    ]


def _norm(gradients: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
