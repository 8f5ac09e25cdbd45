"""Log-probabilities from hidden states, without ever holding more than a chunk of logits.

Shapes: R predictions, E hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOGITS_PER_CHUNK = 1 << 22
"""Logits held at once: 16 MiB in float32, under what `cpu_memory` keeps for reuse."""


def token_logprobs(
    hidden_RE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, target_R: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / temperature)[target] and the distribution's entropy, both float32 of shape (R,).

    The projection is frozen, so the gradient of one log-probability towards its hidden state,
    (W[target] − Σ_v p_v·W[v]) / temperature, is known as soon as the logits are. The forward pass computes it where a
    gradient is wanted: nothing is recomputed in the backward pass, and peak memory grows with R·E, not with R·V.
    The entropy carries no gradient.
    """
    logprobs_R, entropy_R = _TokenLogprobs.apply(hidden_RE, weight_VE.detach(), bias_V, target_R, temperature)
    return logprobs_R, entropy_R


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_RE: Tensor, weight_VE: Tensor, bias_V: Tensor | None, target_R: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        rows = max(1, LOGITS_PER_CHUNK // weight_VE.shape[0])
        wants_gradient = ctx.needs_input_grad[0]
        logprobs, entropies, directions = [], [], []
        for hidden_cE, target_c in zip(hidden_RE.split(rows), target_R.split(rows), strict=True):
            logits_cV = torch.nn.functional.linear(hidden_cE, weight_VE, bias_V).float()
            if temperature != 1.0:
                logits_cV /= temperature
            normaliser_c = logits_cV.logsumexp(dim=1)
            logprobs.append(logits_cV.gather(1, target_c.unsqueeze(1)).squeeze(1) - normaliser_c)
            # Shifted in place: entropy = −Σ p·log p, of log p = logits − normaliser.
            logits_cV -= normaliser_c.unsqueeze(1)
            probs_cV = torch.exp(logits_cV)
            entropies.append(-torch.linalg.vecdot(probs_cV, logits_cV))
            if wants_gradient:
                direction_cE = weight_VE[target_c] - probs_cV.to(weight_VE.dtype) @ weight_VE
                directions.append(direction_cE / temperature)
        if wants_gradient:
            ctx.save_for_backward(torch.cat(directions))
        logprobs_R, entropy_R = torch.cat(logprobs), torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_R)
        return logprobs_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (direction_RE,) = ctx.saved_tensors
        return (grads[0].unsqueeze(1) * direction_RE).to(direction_RE.dtype), None, None, None, None
