"""The ratio and the loss of each token, by `loss_type`. Shapes: B sequences, T positions; (B, 1) is one value per
sequence, which broadcasts over its tokens.

A token loss answers (losses, facts): losses of shape (B, T) or (B, 1), and what the metrics tell of them, each a tensor
whose mean is taken. A is the advantage, r the ratio, lp the log-prob that carries the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from learner.config import LossConfig, LossType
from learner.loss.inputs import LossInputs

Facts = dict[str, Tensor]
TokenLoss = Callable[[LossInputs, Tensor, Tensor | None, LossConfig], tuple[Tensor, Facts]]
"""token_loss(inputs, ratio, sampler_weights, config). Only vespo looks at the sampler's weights: the caller multiplies
every other loss by them."""

_VESPO_LOG_BOUND = 20.0
_VESPO_LOG_FLOOR = math.log(1e-8)


def importance_ratio(inputs: LossInputs, config: LossConfig) -> Tensor:
    """What the policy has moved by since the old log-probs were taken.

    Returns:
        r = exp(lp − old), shape (B, T); at the level `sequence` exp of the mean of (lp − old) over a sequence's tokens,
        shape (B, 1) (GSPO, arXiv 2507.18071). It carries the gradient.
    """
    log_ratio_BT = inputs.logprobs_BT - inputs.old_BT
    if config.importance_sampling_level == "token":
        return torch.exp(log_ratio_BT)
    num_tokens_B1 = inputs.mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.exp((log_ratio_BT * inputs.mask_BT).sum(dim=1, keepdim=True) / num_tokens_B1)


def clipped_losses(
    inputs: LossInputs, ratio: Tensor, weights: Tensor | None, config: LossConfig
) -> tuple[Tensor, Facts]:
    """−min(min(r, delta)·A, clamp(r, 1 − epsilon, 1 + epsilon_high)·A).

    PPO (arXiv 1707.06347), with two bounds (DAPO, arXiv 2503.14476), and delta against the unbounded loss of a large
    ratio where A < 0 (two-sided clipping, arXiv 2505.07291).
    """
    low, high = 1.0 - config.epsilon, 1.0 + _epsilon_high(config)
    unclipped = ratio if config.delta is None else ratio.clamp(max=config.delta)
    losses = -torch.minimum(unclipped * inputs.advantages_B1, ratio.clamp(low, high) * inputs.advantages_B1)
    clipped_low = (ratio < low) & (inputs.advantages_B1 < 0)
    clipped_high = (ratio > high) & (inputs.advantages_B1 > 0)
    return losses, {
        "clip_fraction": clipped_low | clipped_high,
        "clip_fraction_low": clipped_low,
        "clip_fraction_high": clipped_high,
    }


def cispo_losses(inputs: LossInputs, ratio: Tensor, weights: Tensor | None, config: LossConfig) -> tuple[Tensor, Facts]:
    """−stopgrad(clamp(r))·A·lp: every token keeps its gradient (CISPO, arXiv 2506.13585).

    `absolute`: r ≤ epsilon_high itself, as in TRL (ScaleRL, arXiv 2510.13786, takes 5; unset, epsilon's 0.2 holds
    nearly every token). `relative`: 1 − epsilon ≤ r ≤ 1 + epsilon_high, as in verl.
    """
    relative = config.cispo_bound == "relative"
    low = 1.0 - config.epsilon if relative else None
    high = _epsilon_high(config) + (1.0 if relative else 0.0)
    bounded = ratio.detach().clamp(min=low, max=high)
    losses_BT = -bounded * inputs.advantages_B1 * inputs.logprobs_BT
    return losses_BT, {"cispo_clip_fraction": bounded != ratio.detach()}


def sapo_losses(inputs: LossInputs, ratio: Tensor, weights: Tensor | None, config: LossConfig) -> tuple[Tensor, Facts]:
    """−(4/τ)·σ(τ·(r − 1))·A: a soft clip, slope 1 at r = 1; τ is `sapo_temperature_pos` where A > 0, else `_neg`
    (SAPO, arXiv 2511.20347)."""
    temperatures_B1 = _either(
        inputs.advantages_B1 > 0, config.sapo_temperature_pos, config.sapo_temperature_neg, like=ratio
    )
    gate = torch.sigmoid(temperatures_B1 * (ratio - 1)) * 4 / temperatures_B1
    return -gate * inputs.advantages_B1, {}


def vespo_losses(inputs: LossInputs, ratio: Tensor, weights: Tensor | None, config: LossConfig) -> tuple[Tensor, Facts]:
    """−stopgrad(φ)·A·lp, φ one number per sequence (VESPO, arXiv 2602.10693): `vespo_phi`."""
    phi_B1 = vespo_phi(inputs, weights, config)
    return -phi_B1 * inputs.advantages_B1 * inputs.logprobs_BT, {"vespo_phi_mean": phi_B1}


@torch.no_grad()
def vespo_phi(inputs: LossInputs, sampler_weights: Tensor | None, config: LossConfig) -> Tensor:
    """φ(w) = e^λ·w^k·e^(−λw), which is 1 at w = 1: VESPO's weight of a sequence (arXiv 2602.10693).

    w is the whole sequence's importance weight: log w = Σ_t (lp − old) + Σ log of the sampler's weights, so the sampler
    correction is in w and does not multiply the loss. (k, λ) are `vespo_k_pos`, `vespo_lambda_pos` where A ≥ 0, else
    `vespo_k_neg`, `vespo_lambda_neg`. For the exponentials' sake log-ratios of tokens are held within ±20, logs of the
    sampler's weights and log w within log 1e-8 … 20; a sampler weight of 0 (the mask modes) counts as 1e-8.

    Args:
        inputs: Log-probs, mask and advantages.
        sampler_weights: One a token, (B, T), or one a sequence, (B, 1), as `config.sampler_correction` says; None: 1.
        config: Has k and λ.

    Returns:
        Shape (B, 1), without gradient; 0 where it is not finite.
    """
    log_ratio_BT = (inputs.logprobs_BT - inputs.old_BT).clamp(-_VESPO_LOG_BOUND, _VESPO_LOG_BOUND)
    log_w_B1 = (log_ratio_BT * inputs.mask_BT).sum(dim=1, keepdim=True)
    if sampler_weights is not None:
        log_weights = sampler_weights.log().clamp(_VESPO_LOG_FLOOR, _VESPO_LOG_BOUND)
        per_token = config.sampler_correction.startswith("token")
        log_w_B1 = log_w_B1 + (log_weights * inputs.mask_BT if per_token else log_weights).sum(dim=1, keepdim=True)
    log_w_B1 = log_w_B1.clamp(_VESPO_LOG_FLOOR, _VESPO_LOG_BOUND)
    positive_B1 = inputs.advantages_B1 >= 0
    k_B1 = _either(positive_B1, config.vespo_k_pos, config.vespo_k_neg, like=log_w_B1)
    lambda_B1 = _either(positive_B1, config.vespo_lambda_pos, config.vespo_lambda_neg, like=log_w_B1).clamp(min=1e-4)
    phi_B1 = torch.exp(lambda_B1 + k_B1 * log_w_B1 - lambda_B1 * torch.exp(log_w_B1))
    return phi_B1.nan_to_num(nan=0.0, posinf=0.0)


def _either(condition: Tensor, yes: float, no: float, *, like: Tensor) -> Tensor:
    """`torch.where` of two numbers, in the dtype of `like`."""
    return torch.where(condition, like.new_tensor(yes), like.new_tensor(no))


def _epsilon_high(config: LossConfig) -> float:
    return config.epsilon if config.epsilon_high is None else config.epsilon_high


TOKEN_LOSSES: dict[LossType, TokenLoss] = {
    "grpo": clipped_losses,
    "bnpo": clipped_losses,
    "dapo": clipped_losses,
    "dr_grpo": clipped_losses,
    "luspo": clipped_losses,
    "cispo": cispo_losses,
    "sapo": sapo_losses,
    "vespo": vespo_losses,
}
"""The loss of a token, by `loss_type`."""
