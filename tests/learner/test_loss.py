"""Golden losses and gradients, the arithmetic beside them.

Two sequences of 2 and 1 tokens; a ratio r of token t is set by old = lp − log r. At any ratio d(ratio)/d(lp) = ratio.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from learner.loss import LossConfig, global_loss_weight, policy_loss

LOGPROBS = tensor([[-1.0, -2.0], [-0.5, -9.0]], dtype=torch.float64)
MASK = tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
ADVANTAGES = tensor([1.0, -2.0], dtype=torch.float64)


def loss_and_gradient(
    config: LossConfig, *, ratio: list[list[float]] | None = None, **arguments: Any
) -> tuple[float, Tensor, dict[str, float]]:
    logprobs = LOGPROBS.clone().requires_grad_()
    old = None if ratio is None else LOGPROBS - tensor(ratio, dtype=torch.float64).log()
    loss, metrics = policy_loss(logprobs, ADVANTAGES, MASK, config=config, old_logprobs_BT=old, **arguments)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient, metrics


def gradient_of(*rows: list[float]) -> Tensor:
    return tensor(rows, dtype=torch.float64)


def test_dapo() -> None:
    # Ratios 1: ℓ = −A = [−1, −1], [2]; sum 0 over 3 tokens. Gradient −A·1/3.
    loss, gradient, _ = loss_and_gradient(LossConfig(loss_type="dapo"))
    assert loss == pytest.approx(0.0)
    assert_close(gradient, gradient_of([-1 / 3, -1 / 3], [2 / 3, 0.0]))


def test_dapo_over_the_whole_step() -> None:
    # The same sum, over 12 tokens of all micro-batches.
    _, gradient, _ = loss_and_gradient(LossConfig(loss_type="dapo"), num_items=12)
    assert_close(gradient, gradient_of([-1 / 12, -1 / 12], [2 / 12, 0.0]))


def test_grpo() -> None:
    # Sequence means −1 and 2, mean over 2 sequences 1/2. Gradient −A / (tokens of the sequence) / 2.
    loss, gradient, _ = loss_and_gradient(LossConfig(loss_type="grpo"))
    assert loss == pytest.approx(0.5)
    assert_close(gradient, gradient_of([-0.25, -0.25], [1.0, 0.0]))


def test_dr_grpo() -> None:
    # Σ ℓ = 0 over 2 sequences · 10 tokens. Gradient −A / 20.
    loss, gradient, _ = loss_and_gradient(LossConfig(loss_type="dr_grpo", max_completion_length=10))
    assert loss == pytest.approx(0.0)
    assert_close(gradient, gradient_of([-0.05, -0.05], [0.1, 0.0]))


def test_clipping() -> None:
    # A = 1: ratio 1.5 is clipped to 1.2: ℓ = −1.2, no gradient; 0.5 is not (min takes 0.5): ℓ = −0.5, gradient −0.5.
    # A = −2: ratio 0.5 is clipped to 0.8: ℓ = 1.6, no gradient. Sum −0.1 over 3.
    config = LossConfig(loss_type="dapo", epsilon=0.2)
    loss, gradient, metrics = loss_and_gradient(config, ratio=[[1.5, 0.5], [0.5, 1.0]])
    assert loss == pytest.approx(-0.1 / 3)
    assert_close(gradient, gradient_of([0.0, -0.5 / 3], [0.0, 0.0]))
    assert metrics["clip_fraction"] == pytest.approx(2 / 3)
    assert metrics["clip_fraction_high"] == pytest.approx(1 / 3)
    assert metrics["clip_fraction_low"] == pytest.approx(1 / 3)
    # Of 1.5, 0.5, 0.5; the padded position's 1.0 does not count.
    assert metrics["ratio_mean"] == pytest.approx(2.5 / 3)
    assert (metrics["ratio_max"], metrics["ratio_min"]) == (pytest.approx(1.5), pytest.approx(0.5))


def test_the_upper_bound_is_its_own() -> None:
    # With epsilon_high 0.6 the ratio 1.5 is inside: ℓ = −1.5, gradient −1.5. A = −2 at ratio 3: never clipped: ℓ = 6.
    config = LossConfig(loss_type="dapo", epsilon=0.2, epsilon_high=0.6)
    loss, gradient, metrics = loss_and_gradient(config, ratio=[[1.5, 1.0], [3.0, 1.0]])
    assert loss == pytest.approx((-1.5 - 1.0 + 6.0) / 3)
    assert_close(gradient, gradient_of([-0.5, -1 / 3], [2.0, 0.0]))
    assert metrics["clip_fraction"] == 0.0


@pytest.mark.parametrize("corrected", [False, True])
def test_kl_to_the_base(corrected: bool) -> None:
    # ref − lp = ln 2 everywhere: KL = 2 − ln 2 − 1 = 1 − ln 2; dKL/dlp = −2 + 1 = −1. Times the ratio (1): + KL·1.
    config = LossConfig(loss_type="dapo", beta=0.5, use_bias_correction_kl=corrected)
    loss, gradient, metrics = loss_and_gradient(config, ref_logprobs_BT=LOGPROBS + math.log(2))
    kl = 1 - math.log(2)
    slope = 0.5 * (-1 + (kl if corrected else 0.0))
    assert loss == pytest.approx(0.5 * kl)
    assert_close(gradient, gradient_of([(-1 + slope) / 3, (-1 + slope) / 3], [(2 + slope) / 3, 0.0]))
    assert metrics["kl_to_ref"] == pytest.approx(kl)


@pytest.mark.parametrize(
    ("mode", "clip_min", "weights"),
    [
        # Token weights exp(lp − sampling) are 4, 1/4 and 2; the first sequence's is their product 1, the second's 2.
        ("token_truncate", None, [[3.0, 0.25], [2.0, 0.0]]),
        ("token_mask", None, [[0.0, 0.25], [2.0, 0.0]]),
        ("token_truncate", 0.5, [[3.0, 0.5], [2.0, 0.0]]),
        ("token_mask", 0.5, [[0.0, 0.0], [2.0, 0.0]]),
        ("sequence_truncate", None, [[1.0, 1.0], [2.0, 0.0]]),
        ("sequence_mask", 1.5, [[0.0, 0.0], [2.0, 0.0]]),
    ],
)
def test_sampler_correction(mode: Any, clip_min: float | None, weights: list[list[float]]) -> None:
    config = LossConfig(
        loss_type="dapo", vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_min=clip_min
    )
    sampling = LOGPROBS - tensor([[4.0, 0.25], [2.0, 1.0]], dtype=torch.float64).log()
    loss, gradient, metrics = loss_and_gradient(config, sampling_logprobs_BT=sampling)
    (a, b), (c, _) = weights
    assert loss == pytest.approx((-a - b + 2 * c) / 3)
    assert_close(gradient, gradient_of([-a / 3, -b / 3], [2 * c / 3, 0.0]))
    # sampling − training: −ln 4, ln 4, −ln 2; k3 of each: w − 1 − ln w.
    assert metrics["kl_to_sampler"] == pytest.approx(-math.log(2) / 3)
    k3 = (4 - 1 - math.log(4)) + (0.25 - 1 + math.log(4)) + (2 - 1 - math.log(2))
    assert metrics["kl_to_sampler_k3"] == pytest.approx(k3 / 3)


def test_the_correction_leaves_the_kl_alone_and_can_be_off() -> None:
    sampling = LOGPROBS - math.log(4)  # every token weight 4: masked
    base = LOGPROBS + math.log(2)
    on = LossConfig(loss_type="dapo", beta=1.0, vllm_importance_sampling_mode="token_mask")
    loss, _, _ = loss_and_gradient(on, sampling_logprobs_BT=sampling, ref_logprobs_BT=base)
    assert loss == pytest.approx(1 - math.log(2))
    off = LossConfig(loss_type="grpo", vllm_importance_sampling_correction=False)
    loss, _, metrics = loss_and_gradient(off, sampling_logprobs_BT=sampling)
    assert loss == pytest.approx(0.5)
    assert metrics["kl_to_sampler"] == pytest.approx(-math.log(4))


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_what_was_not_scored_counts_nowhere(loss_type: Any) -> None:
    config = LossConfig(loss_type=loss_type)
    wide = LOGPROBS.repeat(2, 1).requires_grad_()
    advantages = torch.cat([ADVANTAGES, tensor([math.nan, math.nan], dtype=torch.float64)])
    loss, _ = policy_loss(wide, advantages, MASK.repeat(2, 1), config=config)
    (gradient,) = torch.autograd.grad(loss, wide)
    expected, expected_gradient, _ = loss_and_gradient(config)
    assert loss.item() == pytest.approx(expected)
    assert_close(gradient, torch.cat([expected_gradient, torch.zeros_like(expected_gradient)]))


def test_padding_may_hold_anything() -> None:
    config = LossConfig(loss_type="dapo", beta=1.0)
    dirty = LOGPROBS.clone()
    dirty[1, 1] = -math.inf
    arguments = {"ref_logprobs_BT": dirty + 1, "sampling_logprobs_BT": dirty * 2, "old_logprobs_BT": dirty}
    dirty = dirty.requires_grad_()
    loss, metrics = policy_loss(dirty, ADVANTAGES, MASK, config=config, **arguments)
    (gradient,) = torch.autograd.grad(loss, dirty)
    assert gradient.isfinite().all()
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_microbatches_add_up_to_the_step(loss_type: Any) -> None:
    config = LossConfig(loss_type=loss_type)
    logprobs = LOGPROBS.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for row in (slice(0, 1), slice(1, 2)):
        loss, _ = policy_loss(logprobs[row], ADVANTAGES[row], MASK[row], config=config, num_items=3)
        total = total + loss * global_loss_weight(loss_type, num_sequences=1, global_num_sequences=2)
    (gradient,) = torch.autograd.grad(total, logprobs)
    expected, expected_gradient, _ = loss_and_gradient(config)
    assert total.item() == pytest.approx(expected)
    assert_close(gradient, expected_gradient)


def test_an_empty_mask_is_a_loss_of_zero() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    loss, metrics = policy_loss(logprobs, ADVANTAGES, torch.zeros_like(MASK), config=LossConfig())
    assert loss.item() == 0.0
    assert metrics["ratio_max"] == 0.0


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="ref_logprobs_BT"):
        policy_loss(LOGPROBS, ADVANTAGES, MASK, config=LossConfig(beta=0.1))
    with pytest.raises(ValueError, match="advantages_B"):
        policy_loss(LOGPROBS, ADVANTAGES[:1], MASK, config=LossConfig())
    with pytest.raises(ValueError, match="expected the shape"):
        policy_loss(LOGPROBS, ADVANTAGES, MASK[:, :1], config=LossConfig())
