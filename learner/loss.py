"""The policy loss, in small pure pieces: weights → ratio → token losses → their sum. torch only.

Shapes: B sequences, T positions of the longest completion; `mask_BT` is 1 on completion tokens, 0 on padding.
Names: `logprobs` are the learner's now, `old` those the ratio is taken against, `sampling` those the sampler reported,
`ref` the base model's. Formulas are those that TRL, verl and OpenRLHF share; each function says its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from learner.config import LossConfig, LossType

__all__ = ["LossConfig", "global_loss_weight", "policy_loss"]


def policy_loss(
    logprobs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    config: LossConfig,
    old_logprobs_BT: Tensor | None = None,
    ref_logprobs_BT: Tensor | None = None,
    sampling_logprobs_BT: Tensor | None = None,
    num_items: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The GRPO loss of B sequences and what there is to say of it.

    Token loss: ℓ = w·(−min(c1·A, c2·A)) + beta·KL, with c1 = exp(lp − old), c2 = clamp(c1, 1 − epsilon,
    1 + epsilon_high), KL = exp(ref − lp) − (ref − lp) − 1 (k3; times c1 unless `use_bias_correction_kl` is off), and w
    the sampler correction (`sampler_weights`).
    Summed as `config.loss_type` says (m the mask):

    | grpo    | mean over sequences of Σ ℓ·m / max(Σ m, 1) |
    | dapo    | Σ ℓ·m / num_items |
    | dr_grpo | Σ ℓ·m / (number of sequences · max_completion_length) |

    `old_logprobs_BT=None` means `logprobs_BT.detach()`: the first update on a batch, every ratio is 1.
    `num_items` is the global denominator of the dapo sum: completion tokens of the whole optimizer step, over all ranks
    and micro-batches; the mask's own sum by default. The other two types divide by the sequences given here; a
    micro-batch's share of a larger step is `global_loss_weight` times its loss.
    A sequence whose advantage is NaN (not scored) is left out of the loss and of every denominator.
    A term that is missing is off: no KL without `ref_logprobs_BT` (needed when beta > 0), no correction without
    `sampling_logprobs_BT`.

    Returns the loss (a scalar that carries the gradient) and metrics as plain floats: means over the mask's tokens,
    except names ending in `_max` or `_min`.

    Raises ValueError for shapes that do not fit or a beta without `ref_logprobs_BT`.
    """
    _check_shapes(logprobs_BT, advantages_B, mask_BT, old_logprobs_BT, ref_logprobs_BT, sampling_logprobs_BT)
    if config.beta > 0 and ref_logprobs_BT is None:
        raise ValueError(f"beta is {config.beta}, so ref_logprobs_BT is needed: the base model's log-probs")
    scored_B = ~advantages_B.isnan()
    advantages_B1 = torch.where(scored_B, advantages_B, 0.0).unsqueeze(1)
    mask_BT = mask_BT.to(logprobs_BT.dtype) * scored_B.unsqueeze(1)
    # Padding may hold anything, infinities too: 0·inf would be NaN, so it is replaced and not only masked.
    inside_BT = mask_BT > 0
    logprobs_BT = torch.where(inside_BT, logprobs_BT, 0.0)
    old_BT = logprobs_BT.detach() if old_logprobs_BT is None else torch.where(inside_BT, old_logprobs_BT, 0.0)

    ratio_BT = torch.exp(logprobs_BT - old_BT)
    losses_BT, clipped_low_BT, clipped_high_BT = clipped_losses(ratio_BT, advantages_B1, config)
    metrics = _Metrics(mask_BT)
    metrics.mean("clip_fraction", clipped_low_BT | clipped_high_BT)
    metrics.mean("clip_fraction_low", clipped_low_BT)
    metrics.mean("clip_fraction_high", clipped_high_BT)
    metrics.spread("ratio", ratio_BT)
    if sampling_logprobs_BT is not None:
        sampling_BT = torch.where(inside_BT, sampling_logprobs_BT, 0.0)
        difference_BT = sampling_BT - logprobs_BT.detach()
        metrics.mean("kl_to_sampler", difference_BT)
        metrics.mean("kl_to_sampler_k3", torch.exp(-difference_BT) + difference_BT - 1)
        metrics.spread("sampling_logprob_difference", difference_BT.abs())
        if config.vllm_importance_sampling_correction:
            weights_BT = sampler_weights(old_BT, sampling_BT, mask_BT, config)
            metrics.spread("importance_sampling_weight", weights_BT)
            losses_BT = losses_BT * weights_BT
    if ref_logprobs_BT is not None:
        ref_BT = torch.where(inside_BT, ref_logprobs_BT, 0.0)
        kl_BT = kl_k3(logprobs_BT, ref_BT)
        metrics.mean("kl_to_ref", kl_BT)
        if config.beta > 0:
            # c1 is 1 in value on the first update and still changes the gradient (arXiv 2512.02556).
            penalty_BT = kl_BT * ratio_BT if config.use_bias_correction_kl else kl_BT
            losses_BT = losses_BT + config.beta * penalty_BT
    loss = REDUCTIONS[config.loss_type](losses_BT, mask_BT, scored_B, config, num_items)
    return loss, metrics.values()


def clipped_losses(ratio_BT: Tensor, advantages_B1: Tensor, config: LossConfig) -> tuple[Tensor, Tensor, Tensor]:
    """−min(c1·A, c2·A) (PPO, arXiv 1707.06347; two bounds: DAPO, arXiv 2503.14476), and where each bound held."""
    low = 1.0 - config.epsilon
    high = 1.0 + (config.epsilon if config.epsilon_high is None else config.epsilon_high)
    losses_BT = -torch.minimum(ratio_BT * advantages_B1, ratio_BT.clamp(low, high) * advantages_B1)
    clipped_low_BT = (ratio_BT < low) & (advantages_B1 < 0)
    clipped_high_BT = (ratio_BT > high) & (advantages_B1 > 0)
    return losses_BT, clipped_low_BT, clipped_high_BT


def kl_k3(logprobs_BT: Tensor, ref_logprobs_BT: Tensor) -> Tensor:
    """exp(ref − lp) − (ref − lp) − 1: unbiased, never negative (Schulman, http://joschu.net/blog/kl-approx.html)."""
    difference_BT = ref_logprobs_BT - logprobs_BT
    return torch.exp(difference_BT) - difference_BT - 1


@torch.no_grad()
def sampler_weights(old_BT: Tensor, sampling_BT: Tensor, mask_BT: Tensor, config: LossConfig) -> Tensor:
    """w = exp(old − sampling): the sampler's numerics and version differ from the learner's. Shape (B, T) or (B, 1).

    Per token, or per sequence from the sum over its tokens. Beyond [clip_min, clip_max] `truncate` clamps the weight
    and `mask` makes it 0 (TRL's four modes). Carries no gradient; multiplies the policy loss, not the KL.
    """
    level, _, beyond = config.vllm_importance_sampling_mode.partition("_")
    log_weights = (old_BT - sampling_BT) * mask_BT
    if level == "sequence":
        log_weights = log_weights.sum(dim=1, keepdim=True)
    weights = torch.exp(log_weights)
    low, high = config.vllm_importance_sampling_clip_min, config.vllm_importance_sampling_clip_max
    if beyond == "truncate":
        return weights.clamp(min=low, max=high)
    outside = weights > high
    if low is not None:
        outside |= weights < low
    return torch.where(outside, 0.0, weights)


Reduction = Callable[[Tensor, Tensor, Tensor, LossConfig, "float | Tensor | None"], Tensor]


def _reduce_grpo(
    losses_BT: Tensor, mask_BT: Tensor, scored_B: Tensor, config: LossConfig, num_items: float | Tensor | None
) -> Tensor:
    per_sequence_B = (losses_BT * mask_BT).sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)
    return per_sequence_B.sum() / scored_B.sum().clamp(min=1)


def _reduce_dapo(
    losses_BT: Tensor, mask_BT: Tensor, scored_B: Tensor, config: LossConfig, num_items: float | Tensor | None
) -> Tensor:
    denominator = mask_BT.sum().clamp(min=1) if num_items is None else num_items
    return (losses_BT * mask_BT).sum() / denominator


def _reduce_dr_grpo(
    losses_BT: Tensor, mask_BT: Tensor, scored_B: Tensor, config: LossConfig, num_items: float | Tensor | None
) -> Tensor:
    return (losses_BT * mask_BT).sum() / (scored_B.sum().clamp(min=1) * config.max_completion_length)


REDUCTIONS: dict[LossType, Reduction] = {"grpo": _reduce_grpo, "dapo": _reduce_dapo, "dr_grpo": _reduce_dr_grpo}
"""How token losses are added up, by `loss_type`."""


def global_loss_weight(loss_type: LossType, *, num_sequences: int, global_num_sequences: int) -> float:
    """What a micro-batch's loss is multiplied by so that the micro-batches of a step add up to the step's loss.

    `grpo` and `dr_grpo` divide by the sequences they are given, so their share is num_sequences over all of the step;
    `dapo` already divides by the global `num_items`. Example: grpo, 2 of 6 sequences: 1/3.
    """
    if loss_type == "dapo":
        return 1.0
    return num_sequences / global_num_sequences


class _Metrics:
    """Collects masked statistics as tensors and turns them into floats in one transfer."""

    def __init__(self, mask_BT: Tensor) -> None:
        self._mask_BT = mask_BT
        self._num_tokens = mask_BT.sum().clamp(min=1)
        self._tensors: dict[str, Tensor] = {}

    def mean(self, name: str, values: Tensor) -> None:
        self._tensors[name] = (values.detach() * self._mask_BT).sum() / self._num_tokens

    def spread(self, name: str, values: Tensor) -> None:
        """Mean, smallest and largest over the mask's tokens; of no tokens at all 0."""
        self.mean(f"{name}_mean", values)
        values = values.detach().expand_as(self._mask_BT)
        empty = self._mask_BT.sum() == 0
        largest = torch.where(self._mask_BT > 0, values, -torch.inf).max()
        smallest = torch.where(self._mask_BT > 0, values, torch.inf).min()
        self._tensors[f"{name}_max"] = torch.where(empty, 0.0, largest)
        self._tensors[f"{name}_min"] = torch.where(empty, 0.0, smallest)

    def values(self) -> dict[str, float]:
        numbers = torch.stack([value.double() for value in self._tensors.values()]).tolist()
        return dict(zip(self._tensors, numbers, strict=True))


def _check_shapes(logprobs_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor, *others_BT: Tensor | None) -> None:
    if logprobs_BT.ndim != 2:
        raise ValueError(f"logprobs_BT must have the shape (sequences, tokens), got {tuple(logprobs_BT.shape)}")
    if advantages_B.shape != logprobs_BT.shape[:1]:
        raise ValueError(f"advantages_B must have the shape ({logprobs_BT.shape[0]},), got {tuple(advantages_B.shape)}")
    for other_BT in (mask_BT, *others_BT):
        if other_BT is not None and other_BT.shape != logprobs_BT.shape:
            raise ValueError(f"expected the shape {tuple(logprobs_BT.shape)}, got {tuple(other_BT.shape)}")
