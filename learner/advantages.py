"""Advantages: what a completion earned over its group's mean.

Shapes: P prompts (groups), G completions of a group, B = P·G sequences. NaN marks a reward that could not be scored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.config import ScaleRewards


def group_advantages(rewards_PG: Tensor, *, scale: ScaleRewards = "group", ddof: int = 1, eps: float = 1e-4) -> Tensor:
    """A = (r − mean of its group) / (s + eps), over what was scored.

    `scale` chooses s: `group`: the standard deviation of the completion's own group (GRPO, arXiv 2402.03300); `batch`:
    that of all rewards of the batch, the mean still per group (arXiv 2508.08221); `none`: no division at all
    (Dr. GRPO, arXiv 2503.20783). A standard deviation divides by n − ddof; where n ≤ ddof it is taken as 0.

    NaN means "not scored": left out of every mean and standard deviation, and its own advantage is NaN, which
    `policy_loss` leaves out of the loss and of every denominator. A group with one scored member gets 0.
    Groups of unequal size are padded with NaN.

    Example: rewards [1, 0, NaN, 1], ddof 1: mean 2/3, s = sqrt(1/3), advantages [0.577, -1.154, NaN, 0.577].

    Raises ValueError for rewards that are not a matrix, are infinite, or an unknown scale.
    """
    if rewards_PG.ndim != 2:
        raise ValueError(f"rewards_PG must have the shape (groups, completions), got {tuple(rewards_PG.shape)}")
    if bool(rewards_PG.isinf().any()):
        raise ValueError("rewards_PG holds an infinite reward; a reward is a finite number, or NaN where not scored")
    rewards_PG = rewards_PG if rewards_PG.is_floating_point() else rewards_PG.float()
    scored_PG = ~rewards_PG.isnan()
    known_PG = torch.where(scored_PG, rewards_PG, 0.0)
    num_scored_P1 = scored_PG.sum(dim=1, keepdim=True)
    mean_P1 = known_PG.sum(dim=1, keepdim=True) / num_scored_P1.clamp(min=1)
    centred_PG = torch.where(scored_PG, rewards_PG - mean_P1, 0.0)
    if scale == "group":
        std_P1 = _std(centred_PG.square().sum(dim=1, keepdim=True), num_scored_P1, ddof)
        advantages_PG = centred_PG / (std_P1 + eps)
    elif scale == "batch":
        num_scored = scored_PG.sum()
        batch_mean = known_PG.sum() / num_scored.clamp(min=1)
        squares = torch.where(scored_PG, rewards_PG - batch_mean, 0.0).square().sum()
        advantages_PG = centred_PG / (_std(squares, num_scored, ddof) + eps)
    elif scale == "none":
        advantages_PG = centred_PG
    else:
        raise ValueError(f"scale must be group, batch or none, got {scale!r}")
    # eps = 0 and equal rewards give 0/0: no deviation from the mean is no advantage, not an unscored one.
    advantages_PG = torch.where(centred_PG == 0, 0.0, advantages_PG)
    return torch.where(scored_PG, advantages_PG, torch.nan)


def _std(sum_of_squares: Tensor, count: Tensor, ddof: int) -> Tensor:
    """Square root of sum_of_squares / (count − ddof); 0 where there are not enough values."""
    enough = count > ddof
    return torch.where(enough, sum_of_squares / (count - ddof).clamp(min=1), 0.0).sqrt()
