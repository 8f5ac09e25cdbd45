"""How far the sampler was from the learner, and what the loss does about it.

Shapes: B sequences, T positions; (B, 1) is one value per sequence. A sampling log-prob that is NaN (vLLM could not say)
counts as no difference at all: weight 1, and no evidence of divergence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.config import LossConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerWeights:
    """What a loss is multiplied by."""

    weights: Tensor
    """Shape (B, T) or (B, 1); 1 on padding, before truncation."""
    beyond: Tensor
    """True where the weight lay outside its bounds, and was truncated or set to 0."""


@torch.no_grad()
def sampler_weights(old_BT: Tensor, sampling_BT: Tensor, mask_BT: Tensor, config: LossConfig) -> SamplerWeights:
    """w = exp(old − sampling): the sampler's numerics and version differ from the learner's. Shape (B, T) or (B, 1).

    Per token, or per sequence from the sum over its tokens. Beyond [clip_min, clip_max] (None: no bound) `truncate`
    clamps the weight and `mask` makes it 0 (TRL's four modes). Multiplies the policy loss, not the KL; has no gradient.

    Args:
        old_BT: The learner's log-probs that the ratio is taken against.
        sampling_BT: The sampler's; NaN where it could not say.
        mask_BT: 1 on completion tokens.
        config: The mode and its bounds.
    """
    level, _, beyond_does = config.sampler_correction.partition("_")
    log_weights = torch.where(sampling_BT.isnan(), 0.0, old_BT - sampling_BT) * mask_BT
    if level == "sequence":
        log_weights = log_weights.sum(dim=1, keepdim=True)
    weights = torch.exp(log_weights)
    low, high = config.vllm_importance_sampling_clip_min, config.vllm_importance_sampling_clip_max
    beyond = torch.zeros_like(weights, dtype=torch.bool)
    if high is not None:
        beyond |= weights > high
    if low is not None:
        beyond |= weights < low
    truncates = beyond_does == "truncate" and not (low is None and high is None)
    bounded = weights.clamp(min=low, max=high) if truncates else torch.where(beyond, 0.0, weights)
    return SamplerWeights(weights=bounded, beyond=beyond)


@torch.no_grad()
def on_policy_B1(
    logprobs_BT: Tensor, behaviour_BT: Tensor, mask_BT: Tensor, advantages_B1: Tensor, *, threshold: float
) -> Tensor:
    """Which sequences stay in the policy loss: those with A ≥ 0, or of which the mean of (behaviour − lp) over the
    tokens is at most `threshold` (DeepSeek-V3.2, arXiv 2512.02556).

    Args:
        logprobs_BT: The learner's now.
        behaviour_BT: The sampler's where there are any, NaN where it could not say; else the old ones.
        mask_BT: 1 on completion tokens.
        advantages_B1: A.
        threshold: Nats a token.

    Returns:
        Shape (B, 1), True for those that stay.
    """
    difference_BT = torch.where(behaviour_BT.isnan(), 0.0, behaviour_BT - logprobs_BT) * mask_BT
    mean_B1 = difference_BT.sum(dim=1, keepdim=True) / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return (advantages_B1 >= 0) | (mean_B1 <= threshold)
