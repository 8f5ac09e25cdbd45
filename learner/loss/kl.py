"""Estimators of the KL to the base model, from one sampled token each. Shapes: B sequences, T positions."""

from __future__ import annotations

import torch
from torch import Tensor

from learner.config import KlEstimator


def kl_estimates(logprobs_BT: Tensor, ref_BT: Tensor, *, estimator: KlEstimator, clamp: float | None = None) -> Tensor:
    """KL(learner ‖ base) per token, with d = lp − ref (Schulman, http://joschu.net/blog/kl-approx.html).

    | k1 | d | unbiased, of either sign |
    | k2 | d²/2 | biased, never negative |
    | k3 | exp(−d) + d − 1 | unbiased, never negative |

    As a loss these differ by their slope: k1's is 1, whose mean under the policy is 0, so that k1 pulls nowhere unless
    it is multiplied by the ratio; k2's is d, on samples of the policy itself the reverse KL's own gradient; k3's is
    1 − exp(−d), the forward KL's.

    Args:
        logprobs_BT: The learner's, which carry the gradient.
        ref_BT: The base model's.
        estimator: One of the three.
        clamp: c holds d within ±c and then the estimate within ±c. Either way a token beyond it has no gradient. verl
            bounds k3 alike, d by 20 and the estimate by 10; SkyRL has the second bound only, open-instruct the first
            (40).

    Returns:
        Shape (B, T), nats.
    """
    difference_BT = logprobs_BT - ref_BT
    if clamp is not None:
        difference_BT = difference_BT.clamp(-clamp, clamp)
    if estimator == "k1":
        estimates_BT = difference_BT
    elif estimator == "k2":
        estimates_BT = difference_BT.square() / 2
    else:
        estimates_BT = torch.exp(-difference_BT) + difference_BT - 1
    return estimates_BT if clamp is None else estimates_BT.clamp(-clamp, clamp)
