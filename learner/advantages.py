"""Advantages: what a completion earned over its group's mean, and what its length costs.

Shapes: P prompts (groups), G completions of a group, K rewards of a completion; (P, 1) is one value per group. NaN
marks a reward that could not be scored; groups of unequal size are padded with NaN.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from learner.config import MultiObjectiveAggregation, ScaleRewards


def group_advantages(
    rewards_PG: Tensor,
    *,
    scale: ScaleRewards = "group",
    ddof: int = 1,
    eps: float = 1e-4,
    categories_P: Sequence[Hashable] | None = None,
) -> Tensor:
    """A = (r − mean of its group) / (s + eps), over what was scored.

    A group with one scored member gets 0, and so does one whose rewards are all equal but for rounding, whatever eps.

    Example: rewards [1, 0, NaN, 1], ddof 1: mean 2/3, s = sqrt(1/3), advantages [0.577, -1.154, NaN, 0.577].

    Args:
        rewards_PG: A reward for each completion; NaN, "not scored", is left out of every mean and standard deviation.
        scale: What s is. `group`: the standard deviation of the completion's own group (GRPO, arXiv 2402.03300);
            `batch`: that of all rewards of the batch, the mean still per group (arXiv 2508.08221); `none`: nothing is
            divided (Dr. GRPO, arXiv 2503.20783).
        ddof: A standard deviation divides by n − ddof; where n ≤ ddof it is taken as 0.
        eps: Added to s.
        categories_P: With `batch`: s is that of all rewards of the group's category.

    Returns:
        The advantages, shape (P, G). That of a reward which is NaN is NaN, and `policy_loss` leaves it out of the loss
        and of every denominator.

    Raises:
        ValueError: The rewards are no matrix, or infinite; the scale is unknown; there is not one category per group.
    """
    if rewards_PG.ndim != 2:
        raise ValueError(f"rewards_PG must have the shape (groups, completions), got {tuple(rewards_PG.shape)}")
    rewards_PG = _checked(rewards_PG, categories_P)
    size_P1 = rewards_PG.abs().nan_to_num(0.0).amax(dim=1, keepdim=True)
    centred_PG = _without_rounding(rewards_PG - _mean_of_known(rewards_PG), size_P1)
    if scale == "none":
        return centred_PG
    if scale == "group":
        return _divided(centred_PG, _std_of_known(rewards_PG, ddof) + eps)
    if scale == "batch":
        return _divided(centred_PG, _std_of_batch(rewards_PG, ddof, categories_P) + eps)
    raise ValueError(f"scale must be group, batch or none, got {scale!r}")


def aggregate_advantages(
    rewards_PGK: Tensor,
    weights_K: Tensor,
    *,
    aggregation: MultiObjectiveAggregation = "sum_then_normalize",
    scale: ScaleRewards = "group",
    ddof: int = 1,
    eps: float = 1e-4,
    categories_P: Sequence[Hashable] | None = None,
) -> Tensor:
    """One advantage of K rewards.

    `sum_then_normalize`: `group_advantages` of Σ_k w_k·r_k over the rewards that were scored.
    `normalize_then_sum` (GDPO, arXiv 2601.05242): each reward is first normalised within its group, as with
    scale=group; of their weighted sum S, A = S / (s + eps), s the standard deviation of S over the batch (over the
    group's category with `categories_P`). The mean of S needs no subtraction: it is 0 in every group. Both as in TRL,
    with its ddof 1 and eps 1e-4.

    Args:
        rewards_PGK: K rewards for each completion; NaN: not scored.
        weights_K: A weight for each reward.
        aggregation: Which of the two.
        scale: As for `group_advantages`; it plays no part in `normalize_then_sum`.
        ddof, eps, categories_P: As for `group_advantages`.

    Returns:
        The advantages, shape (P, G): NaN where none of the K was scored.

    Raises:
        ValueError: As `group_advantages` does, and for weights that are not one per reward.
    """
    if rewards_PGK.ndim != 3 or weights_K.shape != rewards_PGK.shape[2:]:
        raise ValueError(
            "rewards_PGK must have the shape (groups, completions, rewards), and weights_K (rewards,); got "
            f"{tuple(rewards_PGK.shape)} and {tuple(weights_K.shape)}"
        )
    rewards_PGK = _checked(rewards_PGK, categories_P)
    unscored_PG = rewards_PGK.isnan().all(dim=2)

    def weighted_sum(values_PGK: Tensor) -> Tensor:
        return (values_PGK * weights_K).nansum(dim=2).masked_fill(unscored_PG, torch.nan)

    if aggregation == "sum_then_normalize":
        summed_PG = weighted_sum(rewards_PGK)
        return group_advantages(summed_PG, scale=scale, ddof=ddof, eps=eps, categories_P=categories_P)
    if aggregation == "normalize_then_sum":
        each = [group_advantages(rewards_PG, ddof=ddof, eps=eps) for rewards_PG in rewards_PGK.unbind(dim=2)]
        each_PGK = torch.stack(each, dim=2)
        summed_PG = _without_rounding(weighted_sum(each_PGK), (each_PGK * weights_K).abs().nansum(dim=2))
        return _divided(summed_PG, _std_of_batch(summed_PG, ddof, categories_P) + eps)
    raise ValueError(f"aggregation must be sum_then_normalize or normalize_then_sum, got {aggregation!r}")


def overlong_penalty(lengths: Tensor, *, max_completion_length: int, cache: int) -> Tensor:
    """The reward that a completion's length adds: 0 up to max_completion_length − cache, then falling linearly to −1 at
    max_completion_length and beyond (DAPO, arXiv 2503.14476, eq. 13). Tokens; same shape as `lengths`.

    A cache of 0 is no penalty. Example: maximum 100, cache 20: 80 → 0, 90 → −0.5, 100 → −1.

    Raises:
        ValueError: The cache is outside 0 … max_completion_length.
    """
    if not 0 <= cache <= max_completion_length:
        raise ValueError(f"cache must be within 0 and max_completion_length={max_completion_length}, got {cache}")
    penalty = ((max_completion_length - cache - lengths) / max(cache, 1)).clamp(-1, 0)
    return penalty if cache else torch.zeros_like(penalty)


def _checked(rewards: Tensor, categories_P: Sequence[Hashable] | None) -> Tensor:
    if bool(rewards.isinf().any()):
        raise ValueError("there is an infinite reward; a reward is a finite number, or NaN where not scored")
    if categories_P is not None and len(categories_P) != len(rewards):
        raise ValueError(f"expected a category for each of {len(rewards)} groups, got {len(categories_P)}")
    return rewards if rewards.is_floating_point() else rewards.float()


def _mean_of_known(rewards: Tensor) -> Tensor:
    """Mean over the last dimension, kept; NaN left out. Of equal values exactly that value, so that rounding never
    makes an advantage: it is taken of their distances from one of them."""
    lowest = torch.where(rewards.isnan(), torch.inf, rewards).amin(dim=-1, keepdim=True)
    return lowest + (rewards - lowest).nanmean(dim=-1, keepdim=True)


def _std_of_known(rewards: Tensor, ddof: int) -> Tensor:
    """Standard deviation over the last dimension, kept; NaN left out; 0 where there are not enough values."""
    count = (~rewards.isnan()).sum(dim=-1, keepdim=True)
    squares = (rewards - _mean_of_known(rewards)).square().nansum(dim=-1, keepdim=True)
    return torch.where(count > ddof, squares / (count - ddof).clamp(min=1), 0.0).sqrt()


def _std_of_batch(rewards_PG: Tensor, ddof: int, categories_P: Sequence[Hashable] | None) -> Tensor:
    """Standard deviation of all rewards, or of those of the group's category: shape (P, 1)."""
    categories = [None] * len(rewards_PG) if categories_P is None else list(categories_P)
    std_P1 = rewards_PG.new_zeros(len(rewards_PG), 1)
    for category in set(categories):
        rows_P = torch.tensor([other == category for other in categories], device=rewards_PG.device)
        std_P1[rows_P] = _std_of_known(rewards_PG[rows_P].flatten(), ddof)
    return std_P1


def _without_rounding(centred_PG: Tensor, size: Tensor) -> Tensor:
    """Differences that rounding alone explains, beside values of this size, become 0: with eps = 0 a standard deviation
    made of rounding would turn them into advantages of 1."""
    return torch.where(centred_PG.abs() <= 8 * torch.finfo(centred_PG.dtype).eps * size, 0.0, centred_PG)


def _divided(centred_PG: Tensor, by_P1: Tensor) -> Tensor:
    """0 stays 0, also where eps = 0 and equal rewards would make it 0/0: no deviation is no advantage."""
    return torch.where(centred_PG == 0, 0.0, centred_PG / by_P1)
