"""The policy loss, in small pure pieces: ratio → token losses → corrections and masks → KL → their sum. torch only.

Shapes: B sequences, T positions of the longest completion; `mask_BT` is 1 on completion tokens, 0 on padding.
Names: `logprobs` are the learner's now, `old` those the ratio is taken against, `sampling` those the sampler reported,
`ref` the base model's. The pieces: `token_losses`, `sampler_correction`, `entropy_selection`, `kl`, `reductions`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learner.config import LossConfig
from learner.loss.entropy_selection import step_entropy_threshold
from learner.loss.inputs import LossInputs, loss_inputs
from learner.loss.kl import kl_estimates
from learner.loss.metrics import WEIGHT_SQUARES, LossMetrics, Statistics
from learner.loss.reductions import reduce_losses
from learner.loss.sampler_correction import on_policy_B1, sampler_weights
from learner.loss.token_losses import TOKEN_LOSSES, importance_ratio

__all__ = ["LossConfig", "policy_loss", "step_entropy_threshold"]


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
    num_sequences: float | Tensor | None = None,
    entropies_BT: Tensor | None = None,
    entropy_threshold: float | Tensor | None = None,
) -> tuple[Tensor, Statistics]:
    """The loss of B sequences and what there is to say of it.

    ℓ = w·s·h·ℓ₀ + beta·KL·r for each token: ℓ₀ that of `config.loss_type` (`token_losses`), r the ratio exp(lp − old)
    (on the KL only with `use_bias_correction_kl`), w the sampler's weight (`sampler_weights`; vespo has it inside ℓ₀),
    s 0 on sequences that are too far off policy (`on_policy_B1`), h 0 on tokens below the entropy threshold. Added up
    as `loss_type` says (`reduce_losses`); less entropy_coef·(Σ entropies / num_items), whatever the type.

    Args:
        logprobs_BT: The learner's now, which carry the gradient.
        advantages_B: NaN where a sequence was not scored: it is left out of the loss and of every default denominator.
        mask_BT: 1 on completion tokens.
        config: Which loss.
        old_logprobs_BT: Those the ratio is taken against; None: `logprobs_BT.detach()`, so that every ratio is 1.
        ref_logprobs_BT: The base model's, needed with a beta.
        sampling_logprobs_BT: The sampler's, NaN where it could not say; without them nothing is corrected, and "off
            policy" is measured against `old`.
        num_items, num_sequences: Completion tokens and scored sequences of the whole optimizer step, over all ranks
            and micro-batches, whose losses then add up to the step's (bnpo's do not); None: those given here.
        entropies_BT: Needed where `top_entropy_quantile` < 1, and with an `entropy_coef`.
        entropy_threshold: The step's (`step_entropy_threshold`); None: that of the tokens given here.

    Returns:
        The loss, a scalar with the gradient, and metrics: means over the mask's tokens, or extremes (`_max`, `_min`).
        Their names depend only on the config and on which tensors are given.

    Raises:
        ValueError: Shapes do not fit, or what is needed is not given.
    """
    inputs = loss_inputs(
        logprobs_BT,
        advantages_B,
        mask_BT,
        old_logprobs_BT=old_logprobs_BT,
        ref_logprobs_BT=ref_logprobs_BT,
        sampling_logprobs_BT=sampling_logprobs_BT,
        entropies_BT=entropies_BT,
    )
    metrics = LossMetrics(inputs.mask_BT)
    if inputs.entropies_BT is not None:
        metrics.mean("entropy", inputs.entropies_BT)
    if num_items is None:
        num_items = inputs.mask_BT.sum().clamp(min=1)
    loss = reduce_losses(
        _losses(inputs, config, metrics, entropy_threshold),
        inputs.mask_BT,
        config.loss_type,
        num_items=num_items,
        num_sequences=inputs.scored_B.sum().clamp(min=1) if num_sequences is None else num_sequences,
        max_completion_length=config.max_completion_length,
    )
    if config.entropy_coef != 0:
        if inputs.entropies_BT is None:
            raise ValueError(f"entropy_coef is {config.entropy_coef}, so entropies_BT is needed")
        loss = loss - config.entropy_coef * (inputs.entropies_BT * inputs.mask_BT).sum() / num_items
    return loss, metrics.values()


def _losses(
    inputs: LossInputs, config: LossConfig, metrics: LossMetrics, entropy_threshold: float | Tensor | None
) -> Tensor:
    """ℓ of each token, or one of each sequence for all of its tokens."""
    ratio = importance_ratio(inputs, config)
    metrics.spread("ratio", ratio)
    weights = _sampler_correction(inputs, config, metrics)
    losses, facts = TOKEN_LOSSES[config.loss_type](inputs, ratio, weights, config)
    for name, values in facts.items():
        metrics.mean(name, values)
    if weights is not None and config.loss_type != "vespo":
        losses = losses * weights
    losses = _masked_off_policy(losses, inputs, config, metrics)
    losses = _masked_by_entropy(losses, inputs, config, entropy_threshold)
    return _with_kl(losses, ratio, inputs, config, metrics)


def _sampler_correction(inputs: LossInputs, config: LossConfig, metrics: LossMetrics) -> Tensor | None:
    """How far the sampler was, to the metrics; the weights that make up for it, or None where nothing is corrected."""
    if inputs.sampling_BT is None:
        return None
    known_BT = ~inputs.sampling_BT.isnan()
    difference_BT = torch.where(known_BT, inputs.sampling_BT - inputs.logprobs_BT.detach(), 0.0)
    metrics.mean("kl_to_sampler", difference_BT, among_BT=known_BT)
    metrics.mean("kl_to_sampler_k3", torch.exp(-difference_BT) + difference_BT - 1, among_BT=known_BT)
    metrics.spread("sampling_logprob_difference", difference_BT.abs(), among_BT=known_BT)
    if not config.vllm_importance_sampling_correction:
        return None
    correction = sampler_weights(inputs.old_BT, inputs.sampling_BT, inputs.mask_BT, config)
    metrics.spread("importance_sampling_weight", correction.weights)
    metrics.mean(WEIGHT_SQUARES, correction.weights.square())
    metrics.mean("importance_sampling_clip_fraction", correction.beyond)
    return correction.weights


def _masked_off_policy(losses: Tensor, inputs: LossInputs, config: LossConfig, metrics: LossMetrics) -> Tensor:
    if config.off_policy_mask_threshold is None:
        return losses
    stays_B1 = on_policy_B1(
        inputs.logprobs_BT,
        inputs.old_BT if inputs.sampling_BT is None else inputs.sampling_BT,
        inputs.mask_BT,
        inputs.advantages_B1,
        threshold=config.off_policy_mask_threshold,
    )
    metrics.mean("off_policy_masked_fraction", ~stays_B1)
    return torch.where(stays_B1, losses, 0.0)


def _masked_by_entropy(
    losses: Tensor, inputs: LossInputs, config: LossConfig, threshold: float | Tensor | None
) -> Tensor:
    if config.top_entropy_quantile == 1.0:
        return losses
    if inputs.entropies_BT is None:
        raise ValueError(f"top_entropy_quantile is {config.top_entropy_quantile}, so entropies_BT is needed")
    if threshold is None:
        threshold = step_entropy_threshold(inputs.entropies_BT[inputs.mask_BT > 0], config.top_entropy_quantile)
    return torch.where(inputs.entropies_BT >= threshold, losses, 0.0)


def _with_kl(losses: Tensor, ratio: Tensor, inputs: LossInputs, config: LossConfig, metrics: LossMetrics) -> Tensor:
    if inputs.ref_BT is None:
        if config.beta > 0:
            raise ValueError(f"beta is {config.beta}, so ref_logprobs_BT is needed: the base model's log-probs")
        return losses
    kl_BT = kl_estimates(inputs.logprobs_BT, inputs.ref_BT, estimator=config.kl_estimator, clamp=config.kl_clamp)
    metrics.mean("kl_to_ref", kl_BT)
    if config.beta == 0:
        return losses
    # The ratio is 1 in value on the first update and still changes the gradient (DeepSeek-V3.2, arXiv 2512.02556).
    return losses + config.beta * (kl_BT * ratio if config.use_bias_correction_kl else kl_BT)
