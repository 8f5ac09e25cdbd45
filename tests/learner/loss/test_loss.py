"""How token losses add up, and what holds for every loss; the terms themselves are in test_loss_terms.

Two sequences of 2 and 1 tokens, with the advantages 1 and −2, and one position of padding.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from learner.config import LossType
from learner.loss import LossConfig, policy_loss

LOGPROBS = tensor([[-1.0, -2.0], [-0.5, -9.0]], dtype=torch.float64)
MASK = tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
ADVANTAGES = tensor([1.0, -2.0], dtype=torch.float64)
ENTROPIES = tensor([[0.5, 1.5], [1.0, 9.0]], dtype=torch.float64)
LOSS_TYPES = get_args(LossType)


def with_everything(loss_type: Any, **options: Any) -> LossConfig:
    """Every term on, and none of them 0."""
    return LossConfig(
        loss_type=loss_type,
        epsilon_high=5.0 if loss_type == "cispo" else None,
        beta=0.5,
        off_policy_mask_threshold=5.0,
        top_entropy_quantile=0.9,
        vllm_importance_sampling_mode="token_truncate",
        **options,
    )


def others(logprobs: Tensor = LOGPROBS) -> dict[str, Tensor]:
    return {
        "old_logprobs_BT": logprobs - 0.1,
        "ref_logprobs_BT": logprobs + 0.3,
        "sampling_logprobs_BT": logprobs + 0.2,
        "entropies_BT": ENTROPIES[: len(logprobs)],
    }


def loss_and_gradient(
    config: LossConfig, logprobs: Tensor = LOGPROBS, advantages: Tensor = ADVANTAGES, mask: Tensor = MASK, **given: Any
) -> tuple[float, Tensor, dict[str, float]]:
    logprobs = logprobs.clone().requires_grad_()
    loss, metrics = policy_loss(logprobs, advantages, mask, config=config, **given)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return loss.item(), gradient, metrics


@pytest.mark.parametrize(
    ("loss_type", "token_losses", "own", "step"),
    [
        # Ratios 1. Clipped: ℓ = −A, that is −1, −1 and 2. sapo: ℓ = −2A/τ, −2, −2 and 4/1.05. cispo and vespo:
        # ℓ = −A·lp, 1, 2 and −1. The slope is −A each time. `own` are the two sequences' weights by their own
        # denominators, `step` by the step's: 12 items, 8 sequences.
        ("grpo", [-1, -1, 2], [1 / 4, 1 / 2], [1 / 16, 1 / 8]),  # 1/tokens/sequences
        ("sapo", [-2, -2, 4 / 1.05], [1 / 4, 1 / 2], [1 / 16, 1 / 8]),
        ("luspo", [-1, -1, 2], [1 / 2, 1 / 2], [1 / 8, 1 / 8]),  # 1/sequences
        ("dr_grpo", [-1, -1, 2], [1 / 20, 1 / 20], [1 / 80, 1 / 80]),  # 1/sequences/10
        ("dapo", [-1, -1, 2], [1 / 3, 1 / 3], [1 / 12, 1 / 12]),  # 1/tokens of all
        ("cispo", [1, 2, -1], [1 / 3, 1 / 3], [1 / 12, 1 / 12]),
        ("vespo", [1, 2, -1], [1 / 3, 1 / 3], [1 / 12, 1 / 12]),
        ("bnpo", [-1, -1, 2], [1 / 3, 1 / 3], [1 / 3, 1 / 3]),  # its own denominators always
    ],
)
def test_how_token_losses_add_up(
    loss_type: Any, token_losses: list[float], own: list[float], step: list[float]
) -> None:
    config = LossConfig(loss_type=loss_type, epsilon_high=5.0, max_completion_length=10)
    a, b, c = token_losses
    for (first, second), given in ((own, {}), (step, {"num_items": 12, "num_sequences": tensor(8)})):
        loss, gradient, _ = loss_and_gradient(config, **given)
        assert loss == pytest.approx((a + b) * first + c * second)
        assert_close(gradient, tensor([[-first, -first], [2 * second, 0.0]], dtype=torch.float64))


def test_clip_fractions() -> None:
    # A = 1: 1.5 is above 1.2; 0.5 is not held. A = −2: 0.5 is below 0.8. The padded position's 9 does not count.
    old = LOGPROBS - tensor([[1.5, 0.5], [0.5, 9.0]], dtype=torch.float64).log()
    loss, gradient, metrics = loss_and_gradient(LossConfig(loss_type="dapo"), old_logprobs_BT=old)
    assert loss == pytest.approx((-1.2 - 0.5 + 1.6) / 3)
    assert_close(gradient, tensor([[0.0, -0.5 / 3], [0.0, 0.0]], dtype=torch.float64))
    assert metrics["clip_fraction"] == pytest.approx(2 / 3)
    assert metrics["clip_fraction_high"] == pytest.approx(1 / 3)
    assert metrics["clip_fraction_low"] == pytest.approx(1 / 3)
    assert metrics["ratio_mean"] == pytest.approx(2.5 / 3)
    assert (metrics["ratio_max"], metrics["ratio_min"]) == (pytest.approx(1.5), pytest.approx(0.5))
    # cispo holds what is above its bound, of either sign: 1.5 of 1.5, 0.5, 0.5.
    config = LossConfig(loss_type="cispo", epsilon_high=1.4)
    assert loss_and_gradient(config, old_logprobs_BT=old)[2]["cispo_clip_fraction"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_what_was_not_scored_counts_nowhere(loss_type: Any) -> None:
    config = with_everything(loss_type)
    wide = LOGPROBS.repeat(2, 1)
    nan = tensor([math.nan, math.nan], dtype=torch.float64)
    given = {name: values.repeat(2, 1) for name, values in others().items()}
    loss, gradient, metrics = loss_and_gradient(config, wide, torch.cat([ADVANTAGES, nan]), MASK.repeat(2, 1), **given)
    expected, expected_gradient, expected_metrics = loss_and_gradient(config, **others())
    assert loss == pytest.approx(expected)
    assert_close(gradient, torch.cat([expected_gradient, torch.zeros_like(expected_gradient)]))
    assert metrics == pytest.approx(expected_metrics)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_padding_may_hold_anything(loss_type: Any, level: Any) -> None:
    # Bounds that 1 is outside of, so that a padded position's weight would be another than 1.
    config = with_everything(
        loss_type,
        importance_sampling_level=level,
        vllm_importance_sampling_clip_min=1.5,
        vllm_importance_sampling_clip_max=2.0,
    )
    expected, expected_gradient, expected_metrics = loss_and_gradient(config, **others())
    for dirt in (math.inf, -math.inf, math.nan, 1e30):

        def dirty(values: Tensor, dirt: float = dirt) -> Tensor:
            wide = torch.cat([values, torch.zeros(2, 3, dtype=values.dtype)], dim=1)
            return torch.where(torch.cat([MASK, torch.zeros(2, 3)], dim=1) > 0, wide, dirt)

        mask = torch.cat([MASK, torch.zeros(2, 3)], dim=1).bool()
        given = {name: dirty(values) for name, values in others().items()}
        loss, gradient, metrics = loss_and_gradient(config, dirty(LOGPROBS), ADVANTAGES, mask, **given)
        assert loss == pytest.approx(expected)
        assert_close(gradient, torch.cat([expected_gradient, torch.zeros(2, 3)], dim=1))
        assert metrics == pytest.approx(expected_metrics)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name != "bnpo"])
def test_microbatches_add_up_to_the_step(loss_type: Any, level: Any) -> None:
    config = with_everything(loss_type, importance_sampling_level=level)
    expected, expected_gradient, _ = loss_and_gradient(config, entropy_threshold=0.7, **others())
    total, gradients = 0.0, []
    for row in (slice(0, 1), slice(1, 2)):
        loss, gradient, _ = loss_and_gradient(
            config,
            LOGPROBS[row],
            ADVANTAGES[row],
            MASK[row],
            num_items=3,
            num_sequences=2,
            entropy_threshold=0.7,
            **{name: values[row] for name, values in others().items()},
        )
        total += loss
        gradients.append(gradient)
    assert total == pytest.approx(expected)
    assert_close(torch.cat(gradients), expected_gradient)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_an_empty_mask_is_a_loss_of_zero_with_the_same_metrics(loss_type: Any) -> None:
    config = with_everything(loss_type)
    loss, gradient, metrics = loss_and_gradient(config, mask=torch.zeros_like(MASK), **others())
    assert loss == 0.0
    assert_close(gradient, torch.zeros_like(gradient))
    assert set(metrics.values()) == {0.0}
    assert list(metrics) == list(loss_and_gradient(config, **others())[2])


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name not in ("cispo", "vespo")])
def test_the_gradient_is_that_of_the_loss(loss_type: Any) -> None:
    """By finite differences; not of cispo and vespo, whose weights are constants to the gradient alone."""
    config = with_everything(loss_type, importance_sampling_level="sequence")
    given = others()

    def loss(logprobs: Tensor) -> Tensor:
        return policy_loss(logprobs, ADVANTAGES, MASK, config=config, **given)[0]

    assert torch.autograd.gradcheck(loss, LOGPROBS.clone().requires_grad_())


def test_the_dtype_is_that_of_the_logprobs() -> None:
    for dtype in (torch.float32, torch.float64):
        given = {name: values.to(dtype) for name, values in others().items()}
        loss, _ = policy_loss(LOGPROBS.to(dtype), ADVANTAGES.to(dtype), MASK, config=with_everything("sapo"), **given)
        assert loss.dtype == dtype


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="ref_logprobs_BT"):
        policy_loss(LOGPROBS, ADVANTAGES, MASK, config=LossConfig(beta=0.1))
    with pytest.raises(ValueError, match="entropies_BT"):
        policy_loss(LOGPROBS, ADVANTAGES, MASK, config=LossConfig(top_entropy_quantile=0.5))
    with pytest.raises(ValueError, match="advantages_B"):
        policy_loss(LOGPROBS, ADVANTAGES[:1], MASK, config=LossConfig())
    with pytest.raises(ValueError, match="mask_BT: expected the shape"):
        policy_loss(LOGPROBS, ADVANTAGES, MASK[:, :1], config=LossConfig())
    with pytest.raises(ValueError, match="sequences, tokens"):
        policy_loss(LOGPROBS[0], ADVANTAGES, MASK, config=LossConfig())


def test_bounds_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="must be less than"):
        LossConfig(vllm_importance_sampling_clip_min=3.0)
    with pytest.raises(ValueError, match="truncates nothing"):
        LossConfig(vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max=None)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_mask_with_holes_is_the_loss_without_the_tokens(loss_type: str, level: str) -> None:
    """What was given between turns is taken out before the loss; a mask says the same."""
    random = torch.Generator().manual_seed(LOSS_TYPES.index(loss_type))
    length, kept = 12, [0, 1, 4, 5, 6, 10]
    config = with_everything(loss_type, importance_sampling_level=level)
    whole = {
        name: -3 * torch.rand(2, length, generator=random, dtype=torch.float64)
        for name in ("logprobs_BT", "old_logprobs_BT", "ref_logprobs_BT", "sampling_logprobs_BT", "entropies_BT")
    }
    mask_BT = torch.zeros(2, length, dtype=torch.float64)
    mask_BT[:, kept] = 1.0

    def measured(mask_BT: Tensor, tensors: dict[str, Tensor]) -> tuple[float, Tensor, dict[str, float]]:
        tensors = dict(tensors)
        return loss_and_gradient(config, tensors.pop("logprobs_BT"), mask=mask_BT, **tensors)

    loss, gradient, metrics = measured(mask_BT, whole)
    removed = {name: values[:, kept] for name, values in whole.items()}
    expected, expected_gradient, expected_metrics = measured(mask_BT[:, kept], removed)
    assert loss == pytest.approx(expected, abs=1e-12)
    assert_close(gradient[:, kept], expected_gradient, rtol=0, atol=1e-12)
    assert not gradient[mask_BT == 0].any()
    assert dict(metrics) == pytest.approx(dict(expected_metrics), abs=1e-12)
