"""Log-probabilities from hidden states, without ever holding more than a chunk of logits.

Shapes: R predictions, c of them in a chunk, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from learner.policy.products import float32_product, whole_product

LOGITS_PER_CHUNK = {"cpu": (1 << 23) - 1, "cuda": 1 << 26}
"""Logits in one tensor, by device: on CPUs less than 32 MiB in float32, which `cpu_memory` keeps for reuse; on GPUs 256
MiB. Fewer make products too flat for the processor: with half as many, the head takes a third longer at 150,000 tokens
of vocabulary."""


def token_logprobs(
    hidden_RE: Tensor,
    weight_VE: Tensor,
    bias_V: Tensor | None,
    target_R: Tensor,
    *,
    temperature: float,
    softcap: float | None = None,
    entropy_gradient: bool = False,
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature)[target] and the distribution's entropy, both float32 of shape (R,).

    Of a frozen projection the gradient of one log-probability towards its hidden state,
    Σ_v (1[v = target] − p_v)·W[v] / temperature, is known as soon as the logits are: the forward pass computes it where
    a gradient is wanted, and nothing is recomputed. A projection that is trained itself needs the upstream gradient
    first, so its logits are computed again, chunk by chunk, in the backward pass. Either way peak memory grows with
    R·E, not with R·V. So it is with the entropy H where its gradient is asked for, −Σ_v p_v·(log p_v + H)·W[v] /
    temperature: one product more a chunk.

    Whatever the projection's precision, 1 − p[target] is formed in float32, as the sum of the other p_v: in bfloat16
    W[target] − Σ_v p_v·W[v] has nothing left of it where p is 0.999.

    Args:
        hidden_RE: What predicts each target.
        weight_VE, bias_V: The output projection.
        target_R: Token ids.
        temperature: Above 0.
        softcap: Bounds logits l before the temperature: softcap · tanh(l / softcap).
        entropy_gradient: The entropy carries one too.
    """
    function = _TrainedHead if torch.is_grad_enabled() and weight_VE.requires_grad else _FrozenHead
    options = temperature, softcap, entropy_gradient
    logprobs_R, entropy_R = function.apply(hidden_RE, weight_VE, bias_V, target_R, *options)  # type: ignore[no-untyped-call]
    return logprobs_R, entropy_R


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        target_R: Tensor,
        temperature: float,
        softcap: float | None,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        wants_gradient = ctx.needs_input_grad[0]
        logprobs, entropies, directions, of_entropy = [], [], [], []
        for rows in _chunks(target_R, len(weight_VE)):
            target_c1 = target_R[rows].unsqueeze(1)
            logprobs_cV, slope_cV = _log_softmax(hidden_RE[rows], weight_VE, bias_V, temperature, softcap)
            logprobs.append(logprobs_cV.gather(1, target_c1).squeeze(1))
            probs_cV = torch.exp(logprobs_cV)
            entropies.append(-torch.linalg.vecdot(probs_cV, logprobs_cV))
            if wants_gradient and entropy_gradient:
                towards_cV = _entropy_towards(logprobs_cV, entropies[-1], slope_cV)
                of_entropy.append(whole_product(towards_cV.to(weight_VE.dtype), weight_VE))
            if wants_gradient:
                others_c1 = _without_target(probs_cV, target_c1)
                if slope_cV is not None:
                    probs_cV *= slope_cV
                    others_c1 = others_c1 * slope_cV.gather(1, target_c1)
                others_cE = whole_product(probs_cV.to(weight_VE.dtype), weight_VE)
                directions.append(others_c1 * weight_VE[target_R[rows]] - others_cE)
        if wants_gradient:
            ctx.save_for_backward(*(torch.cat(rows) for rows in (directions, of_entropy) if rows))
            ctx.temperature, ctx.dtype = temperature, hidden_RE.dtype
        entropy_R = torch.cat(entropies)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_R)
        return torch.cat(logprobs), entropy_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None, None, None]:
        upstream = [(grad / ctx.temperature).unsqueeze(1) for grad in grads]
        parts = [one * direction_RE for one, direction_RE in zip(upstream, ctx.saved_tensors, strict=False)]
        grad_RE = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return grad_RE.to(ctx.dtype), None, None, None, None, None, None


class _TrainedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_RE: Tensor,
        weight_VE: Tensor,
        bias_V: Tensor | None,
        target_R: Tensor,
        temperature: float,
        softcap: float | None,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        options = temperature, softcap, entropy_gradient
        with torch.no_grad():
            logprobs_R, entropy_R = _FrozenHead.apply(hidden_RE, weight_VE, bias_V, target_R, *options)
        ctx.save_for_backward(hidden_RE, weight_VE, bias_V, target_R, entropy_R)
        ctx.temperature, ctx.softcap, ctx.entropy_gradient = options
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy_R)
        return logprobs_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None, None, None]:
        hidden_RE, weight_VE, bias_V, target_R, entropy_R = ctx.saved_tensors
        upstream_R, of_entropy_R = (grad.float() / ctx.temperature for grad in grads)
        grad_hidden_RE, grad_weight_VE = torch.empty_like(hidden_RE), torch.zeros_like(weight_VE)
        grad_bias_V = None if bias_V is None else torch.zeros_like(bias_V)
        for rows in _chunks(target_R, len(weight_VE)):
            target_c1 = target_R[rows].unsqueeze(1)
            # Of one log-probability towards the logits: onehot(target) − p.
            logprobs_cV, slope_cV = _log_softmax(hidden_RE[rows], weight_VE, bias_V, ctx.temperature, ctx.softcap)
            bonus_cV = _entropy_towards(logprobs_cV, entropy_R[rows], slope_cV) if ctx.entropy_gradient else None
            towards_cV = logprobs_cV.exp_()
            others_c1 = _without_target(towards_cV, target_c1)
            towards_cV.scatter_(1, target_c1, -others_c1)
            if slope_cV is not None:
                towards_cV *= slope_cV
            towards_cV *= -upstream_R[rows].unsqueeze(1)
            if bonus_cV is not None:
                towards_cV.addcmul_(bonus_cV, of_entropy_R[rows].unsqueeze(1))
            towards_cV = towards_cV.to(weight_VE.dtype)
            grad_hidden_RE[rows] = towards_cV @ weight_VE
            grad_weight_VE.addmm_(towards_cV.T, hidden_RE[rows].to(weight_VE.dtype))
            if grad_bias_V is not None:
                grad_bias_V += towards_cV.sum(dim=0)
        return grad_hidden_RE, grad_weight_VE, grad_bias_V, None, None, None, None


def _chunks(target_R: Tensor, vocabulary: int) -> Iterator[slice]:
    rows = max(1, LOGITS_PER_CHUNK[target_R.device.type] // vocabulary)
    return (slice(start, start + rows) for start in range(0, len(target_R), rows))


def _log_softmax(
    hidden_cE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """float32, as the sampler's, and with a softcap the derivative of each logit towards itself before that. A trained
    head is float32 over hidden states of the base's precision."""
    logits_cV = float32_product(hidden_cE.to(weight_VE.dtype), weight_VE.T)
    if bias_V is not None:
        logits_cV += bias_V
    slope_cV = None
    if softcap is not None:
        logits_cV = torch.tanh_(logits_cV / softcap)
        slope_cV = 1 - logits_cV.square()
        logits_cV *= softcap
    if temperature != 1.0:
        logits_cV /= temperature
    return torch.log_softmax(logits_cV, dim=1), slope_cV


def _entropy_towards(logprobs_cV: Tensor, entropy_c: Tensor, slope_cV: Tensor | None) -> Tensor:
    """The derivative of each distribution's entropy H towards its logits over the temperature: −p_v·(log p_v + H)."""
    towards_cV = -logprobs_cV.exp() * (logprobs_cV + entropy_c.unsqueeze(1))
    return towards_cV if slope_cV is None else towards_cV * slope_cV


def _without_target(probs_cV: Tensor, target_c1: Tensor) -> Tensor:
    """Sets p[target] to 0, in place, and answers with the sum of the others, shape (c, 1): 1 − p[target], of which a
    difference would leave nothing where p is nearly 1."""
    return probs_cV.scatter_(1, target_c1, 0.0).sum(dim=1, keepdim=True)
