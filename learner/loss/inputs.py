"""What the loss is computed from, checked and cleaned once. torch only.

Shapes: B sequences, T positions of the longest completion; (B, 1) is one value per sequence. `logprobs` are the
learner's now, `old` those the ratio is taken against, `sampling` those the sampler reported, `ref` the base model's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs:
    """The terms of a loss; None: not given. Outside the mask every tensor holds 0."""

    logprobs_BT: Tensor
    """It carries the gradient."""
    old_BT: Tensor
    mask_BT: Tensor
    """1 on completion tokens of scored sequences, else 0; of the log-probs' dtype."""
    advantages_B1: Tensor
    """0 where not scored."""
    scored_B: Tensor
    ref_BT: Tensor | None
    sampling_BT: Tensor | None
    """NaN where the sampler could not say."""
    entropies_BT: Tensor | None
    """It may carry a gradient too."""


def loss_inputs(
    logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    old_logprobs_BT: Tensor | None,
    ref_logprobs_BT: Tensor | None,
    sampling_logprobs_BT: Tensor | None,
    entropies_BT: Tensor | None,
) -> LossInputs:
    """The arguments of `policy_loss` of the same names, checked and cleaned.

    Returns:
        All of shape (B, T) or (B, 1), 0 outside the mask. A sequence whose advantage is NaN leaves the mask. Where no
        old log-probs are given they are the learner's own, without gradient.

    Raises:
        ValueError: A shape is not that of `logprobs_BT`, or the advantages are not one a sequence.
    """
    _check_shapes(
        logprobs_BT,
        advantages_B,
        mask_BT=mask_BT,
        old_logprobs_BT=old_logprobs_BT,
        ref_logprobs_BT=ref_logprobs_BT,
        sampling_logprobs_BT=sampling_logprobs_BT,
        entropies_BT=entropies_BT,
    )
    scored_B = ~advantages_B.isnan()
    mask_BT = mask_BT.to(logprobs_BT.dtype) * scored_B.unsqueeze(1)
    inside_BT = mask_BT > 0

    # Padding may hold anything, infinities too: 0·inf would be NaN, so it is replaced and not only masked.
    def clean(values_BT: Tensor) -> Tensor:
        return torch.where(inside_BT, values_BT, 0.0)

    def clean_constant(values_BT: Tensor | None) -> Tensor | None:
        return None if values_BT is None else clean(values_BT.detach())

    logprobs_BT = clean(logprobs_BT)
    return LossInputs(
        logprobs_BT=logprobs_BT,
        old_BT=logprobs_BT.detach() if old_logprobs_BT is None else clean(old_logprobs_BT.detach()),
        mask_BT=mask_BT,
        advantages_B1=torch.where(scored_B, advantages_B, 0.0).unsqueeze(1),
        scored_B=scored_B,
        ref_BT=clean_constant(ref_logprobs_BT),
        sampling_BT=clean_constant(sampling_logprobs_BT),
        entropies_BT=None if entropies_BT is None else clean(entropies_BT),
    )


def _check_shapes(logprobs_BT: Tensor, advantages_B: Tensor, **others_BT: Tensor | None) -> None:
    if logprobs_BT.ndim != 2:
        raise ValueError(f"logprobs_BT must have the shape (sequences, tokens), got {tuple(logprobs_BT.shape)}")
    if advantages_B.shape != logprobs_BT.shape[:1]:
        raise ValueError(f"advantages_B must have the shape ({logprobs_BT.shape[0]},), got {tuple(advantages_B.shape)}")
    for name, other_BT in others_BT.items():
        if other_BT is not None and other_BT.shape != logprobs_BT.shape:
            raise ValueError(f"{name}: expected the shape {tuple(logprobs_BT.shape)}, got {tuple(other_BT.shape)}")
