"""Golden values of every term of a token's loss, the arithmetic beside them.

One sequence of one token with lp = −1/2, and denominators of 1, so that the loss is ℓ and the gradient dℓ/dlp. A ratio
r is set by old = lp − ln r, and d(ratio)/d(lp) = r.
"""

from __future__ import annotations

import math
from math import e, exp, log
from typing import Any

import pytest
import torch
from torch import Tensor, tensor
from torch.testing import assert_close

from learner.loss import LossConfig, policy_loss, step_entropy_threshold

LOGPROB = -0.5
NAN = math.nan


def sequence_loss(
    config: LossConfig, advantage: float, logprobs: list[float], **others: list[float] | None
) -> tuple[float, list[float], dict[str, float]]:
    """The loss of one sequence, its gradient by token, and the metrics; `others` as `policy_loss` names them."""
    lp_BT = tensor([logprobs], dtype=torch.float64, requires_grad=True)
    tensors: dict[str, Any] = {
        f"{name}_BT": None if values is None else tensor([values], dtype=torch.float64)
        for name, values in others.items()
    }
    advantages_B = tensor([advantage], dtype=torch.float64)
    mask_BT = torch.ones_like(lp_BT)
    loss, metrics = policy_loss(lp_BT, advantages_B, mask_BT, config=config, num_items=1, num_sequences=1, **tensors)
    (gradient_BT,) = torch.autograd.grad(loss, lp_BT)
    return loss.item(), gradient_BT[0].tolist(), metrics


def token_loss(config: LossConfig, advantage: float, ratio: float = 1.0, **others: float) -> tuple[float, float]:
    old = [LOGPROB - log(ratio)]
    values = {name: [value] for name, value in others.items()}
    loss, (slope,), _ = sequence_loss(config, advantage, [LOGPROB], old_logprobs=old, **values)
    return loss, slope


CLIPPED = ["grpo", "bnpo", "dapo", "dr_grpo", "luspo"]


@pytest.mark.parametrize("loss_type", CLIPPED)
@pytest.mark.parametrize(
    ("options", "advantage", "ratio", "loss", "slope"),
    [
        # −min(r·A, clamp(r, 0.8, 1.2)·A); where the clamped side is taken there is no slope, else −A·r.
        ({}, 1.0, 1.0, -1.0, -1.0),
        ({}, 1.0, 1.5, -1.2, 0.0),
        ({}, 1.0, 0.5, -0.5, -0.5),
        ({}, -2.0, 0.5, 1.6, 0.0),
        ({}, -2.0, 1.5, 3.0, 3.0),
        # Only the upper bound is moved: 1.5 is inside 1.6, 2 is not; 0.5 is below 0.8 still.
        ({"epsilon_high": 0.6}, 1.0, 1.5, -1.5, -1.5),
        ({"epsilon_high": 0.6}, 1.0, 2.0, -1.6, 0.0),
        ({"epsilon_high": 0.6}, -2.0, 0.5, 1.6, 0.0),
        # delta bounds r itself: at A < 0 the loss ends at 4·2; at A > 0 the clamped side, 1.2, is smaller already …
        ({"delta": 4.0}, -2.0, 3.0, 6.0, 6.0),
        ({"delta": 4.0}, -2.0, 5.0, 8.0, 0.0),
        ({"delta": 4.0}, 1.0, 5.0, -1.2, 0.0),
        # … unless delta is below it.
        ({"delta": 1.1}, 1.0, 1.5, -1.1, 0.0),
    ],
)
def test_clipped(
    loss_type: Any, options: dict[str, float], advantage: float, ratio: float, loss: float, slope: float
) -> None:
    config = LossConfig(loss_type=loss_type, epsilon=0.2, max_completion_length=1, **options)  # type: ignore[arg-type]
    assert token_loss(config, advantage, ratio) == (pytest.approx(loss), pytest.approx(slope))


@pytest.mark.parametrize(
    ("options", "advantage", "ratio", "loss", "slope"),
    [
        # −w·A·lp with w = min(r, epsilon_high) held constant: ℓ = w·A/2, slope −w·A.
        ({"epsilon_high": 5.0}, 1.0, 3.0, 1.5, -3.0),
        ({"epsilon_high": 5.0}, 1.0, 8.0, 2.5, -5.0),
        ({"epsilon_high": 5.0}, -2.0, 0.1, -0.1, 0.2),
        ({"epsilon": 0.2}, 1.0, 1.0, 0.1, -0.2),  # epsilon is the bound where epsilon_high is not set
        # w within [1 − 0.2, 1 + 0.3].
        ({"epsilon_high": 0.3, "cispo_bound": "relative"}, 1.0, 3.0, 0.65, -1.3),
        ({"epsilon_high": 0.3, "cispo_bound": "relative"}, 1.0, 0.5, 0.4, -0.8),
        ({"epsilon_high": 0.3, "cispo_bound": "relative"}, -2.0, 1.1, -1.1, 2.2),
    ],
)
def test_cispo(options: dict[str, Any], advantage: float, ratio: float, loss: float, slope: float) -> None:
    config = LossConfig(loss_type="cispo", **options)
    assert token_loss(config, advantage, ratio) == (pytest.approx(loss), pytest.approx(slope))


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [
        # −A·σ(τ(r − 1))·4/τ; slope −A·r·4σ(1 − σ). At r = 1 σ is 1/2: gate 2/τ, slope −A.
        (1.0, 1.0, -2.0, -1.0),
        (-2.0, 1.0, 2.0, 2.0),
        # σ(ln 3) = 3/4, at τ = 1 with r = 1 + ln 3: gate 3; at τ = 2 with r = 1 + ln 3 / 2: gate 3/2. 4σ(1 − σ) = 3/4.
        (1.0, 1 + log(3), -3.0, -0.75 * (1 + log(3))),
        (-2.0, 1 + log(3) / 2, 3.0, 2 * 0.75 * (1 + log(3) / 2)),
    ],
)
def test_sapo(advantage: float, ratio: float, loss: float, slope: float) -> None:
    config = LossConfig(loss_type="sapo", sapo_temperature_pos=1.0, sapo_temperature_neg=2.0)
    assert token_loss(config, advantage, ratio) == (pytest.approx(loss), pytest.approx(slope))


@pytest.mark.parametrize(
    ("options", "advantage", "ratio", "phi"),
    [
        # φ = e^λ·w^k·e^(−λw); (k, λ) = (2, 3) where A ≥ 0, else (3, 2). ℓ = −φ·A·lp = φ·A/2, slope −φ·A.
        ({}, 1.0, 1.0, 1.0),
        ({}, 1.0, 2.0, 4 * exp(-3)),  # e³·4·e⁻⁶
        ({}, -2.0, 0.5, e / 8),  # e²·⅛·e⁻¹
        ({"vespo_k_pos": 1.0, "vespo_lambda_pos": 1.0}, 1.0, 3.0, 3 * exp(-2)),  # e·3·e⁻³
        ({"vespo_k_neg": 1.0, "vespo_lambda_neg": 1.0}, -2.0, 3.0, 3 * exp(-2)),
    ],
)
def test_vespo(options: dict[str, float], advantage: float, ratio: float, phi: float) -> None:
    config = LossConfig(loss_type="vespo", **options)  # type: ignore[arg-type]
    expected = (pytest.approx(phi * advantage / 2), pytest.approx(-phi * advantage))
    assert token_loss(config, advantage, ratio) == expected


@pytest.mark.parametrize(
    ("mode", "clip_max", "w"),
    [
        # Ratios 2 and 1/2: product 1. The sampler's token weights 4 and 1/2, and the third unknown: 1.
        ("token_mask", None, 4 * 0.5),
        ("token_truncate", 3.0, 3 * 0.5),
        ("token_mask", 3.0, 1e-8 * 0.5),  # a weight of 0 counts as 1e-8
        ("sequence_mask", 3.0, 2.0),  # of the sequence 2
        ("sequence_truncate", 1.5, 1.5),
        ("sequence_mask", 1.5, 1e-8),
    ],
)
def test_vespo_has_the_samplers_weight_in_its_own(mode: Any, clip_max: float | None, w: float) -> None:
    config = LossConfig(
        loss_type="vespo", vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_max=clip_max
    )
    logprobs = [-1.0, -2.0, -3.0]
    old = [-1.0 - log(2), -2.0 + log(2), -3.0]
    sampling = [old[0] - log(4), old[1] + log(2), NAN]
    loss, gradient, metrics = sequence_loss(config, 1.0, logprobs, old_logprobs=old, sampling_logprobs=sampling)
    w = max(w, 1e-8)  # log w itself ends at log 1e-8
    phi = exp(3) * w**2 * exp(-3 * w)
    assert loss == pytest.approx(6 * phi)  # −φ·(−1 − 2 − 3)
    assert gradient == pytest.approx([-phi] * 3)
    assert metrics["vespo_phi_mean"] == pytest.approx(phi)


@pytest.mark.parametrize(
    ("options", "loss", "gradient"),
    [
        # lp = −1, −2; log-ratios ln 4 and 0, mean ln 2: r = 2 for both tokens; dr/dlp = r/2 = 1 each. A = 1.
        ({"loss_type": "grpo", "epsilon_high": 2.0}, -2.0, [-1.0, -1.0]),  # mean over tokens of −r
        ({"loss_type": "luspo", "epsilon_high": 2.0}, -4.0, [-2.0, -2.0]),  # their sum, 2·(−r)
        ({"loss_type": "dapo", "epsilon_high": 2.0}, -4.0, [-2.0, -2.0]),
        ({"loss_type": "luspo", "epsilon_high": 0.2}, -2.4, [0.0, 0.0]),  # 2·(−1.2)
        ({"loss_type": "cispo", "epsilon_high": 5.0}, 6.0, [-2.0, -2.0]),  # −2·lp each
        # σ(1): gate 4σ, slope −4σ(1 − σ)·dr/dlp, the mean over the two tokens.
        ({"loss_type": "sapo"}, -4 / (1 + 1 / e), [-4 * e / (1 + e) ** 2] * 2),
        # w = 4: φ = e³·16·e⁻¹²; the level is of no matter to vespo.
        ({"loss_type": "vespo"}, 3 * 16 * exp(-9), [-16 * exp(-9)] * 2),
    ],
)
def test_a_ratio_per_sequence(options: dict[str, Any], loss: float, gradient: list[float]) -> None:
    config = LossConfig(importance_sampling_level="sequence", epsilon=0.2, **options)
    got, got_gradient, metrics = sequence_loss(config, 1.0, [-1.0, -2.0], old_logprobs=[-1.0 - log(4), -2.0])
    assert got == pytest.approx(loss)
    assert got_gradient == pytest.approx(gradient)
    assert metrics["ratio_mean"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("estimator", "clamp", "difference", "kl", "slope"),
    [
        # d = lp − ref. k1: d, slope 1. k2: d²/2, slope d. k3: e^(−d) + d − 1, slope 1 − e^(−d).
        ("k1", None, -log(2), -log(2), 1.0),
        ("k2", None, -log(2), log(2) ** 2 / 2, -log(2)),
        ("k3", None, -log(2), 1 - log(2), -1.0),
        ("k3", None, log(2), log(2) - 0.5, 0.5),
        # |d| beyond the clamp: the estimate at ±1/2, no slope.
        ("k1", 0.5, -log(2), -0.5, 0.0),
        ("k2", 0.5, -log(2), 0.125, 0.0),
        ("k3", 0.5, -log(2), exp(0.5) - 1.5, 0.0),
        # d within it, the estimate beyond: k2 of 2.8 is 3.92, k3 of −1.9 is 3.79.
        ("k2", 3.0, 2.8, 3.0, 0.0),
        ("k3", 2.0, -1.9, 2.0, 0.0),
        # Neither.
        ("k1", 3.0, 2.8, 2.8, 1.0),
        ("k3", 2.0, -log(2), 1 - log(2), -1.0),
    ],
)
@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_kl(estimator: Any, clamp: float | None, difference: float, kl: float, slope: float, ratio: float) -> None:
    # With A = 0 the loss is beta·KL, or corrected beta·KL·r, whose slope is beta·r·(KL' + KL).
    for corrected, loss, gradient in ((False, kl, slope), (True, kl * ratio, ratio * (slope + kl))):
        config = LossConfig(beta=0.5, kl_estimator=estimator, kl_clamp=clamp, use_bias_correction_kl=corrected)
        got = token_loss(config, 0.0, ratio, ref_logprobs=LOGPROB - difference)
        assert got == (pytest.approx(0.5 * loss), pytest.approx(0.5 * gradient))


def test_kl_of_an_overflow_is_finite_only_when_clamped() -> None:
    # d = −2000: e^2000 is infinite in float64. Clamped to 10: k3 = e^10 − 11, held at 10, and no gradient.
    config = LossConfig(beta=1.0, kl_clamp=10.0, use_bias_correction_kl=False)
    assert token_loss(config, 0.0, ref_logprobs=LOGPROB + 2000) == (10.0, 0.0)


def test_kl_is_corrected_by_the_ratio_of_the_sequence() -> None:
    # Ratio 2 of both tokens (log-ratios ln 4, 0), dr/dlp = 1; d = −ln 2: KL = 1 − ln 2 each, slope −1, A = 0.
    # Σ KL·r = 4·KL; by one lp: r·(−1) + Σ KL·dr/dlp = −2 + 2·KL.
    config = LossConfig(beta=1.0, importance_sampling_level="sequence")
    ref = [-1.0 + log(2), -2.0 + log(2)]
    old = [-1.0 - log(4), -2.0]
    loss, gradient, metrics = sequence_loss(config, 0.0, [-1.0, -2.0], old_logprobs=old, ref_logprobs=ref)
    kl = 1 - log(2)
    assert loss == pytest.approx(4 * kl)
    assert gradient == pytest.approx([-2 + 2 * kl] * 2)
    assert metrics["kl_to_ref"] == pytest.approx(kl)


@pytest.mark.parametrize(
    ("mode", "clip_min", "clip_max", "weights", "beyond"),
    [
        # exp(old − sampling) of the tokens: 4, 1/4, 2, and 1 where the sampler could not say; of the sequence 2.
        ("token_truncate", None, 3.0, [3.0, 0.25, 2.0, 1.0], 1 / 4),
        ("token_truncate", 0.5, None, [4.0, 0.5, 2.0, 1.0], 1 / 4),
        ("token_truncate", 0.5, 3.0, [3.0, 0.5, 2.0, 1.0], 2 / 4),
        ("token_mask", None, 3.0, [0.0, 0.25, 2.0, 1.0], 1 / 4),
        ("token_mask", 0.5, 3.0, [0.0, 0.0, 2.0, 1.0], 2 / 4),
        ("token_mask", None, None, [4.0, 0.25, 2.0, 1.0], 0.0),
        ("sequence_truncate", None, 1.5, [1.5] * 4, 1.0),
        ("sequence_truncate", 2.5, 3.0, [2.5] * 4, 1.0),
        ("sequence_mask", None, 3.0, [2.0] * 4, 0.0),
        ("sequence_mask", None, 1.5, [0.0] * 4, 1.0),
        ("sequence_mask", 2.5, None, [0.0] * 4, 1.0),
    ],
)
def test_sampler_correction(
    mode: Any, clip_min: float | None, clip_max: float | None, weights: list[float], beyond: float
) -> None:
    # At ratio 1 and A = 1 ℓ = −w, slope −w.
    config = LossConfig(
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_min=clip_min,
        vllm_importance_sampling_clip_max=clip_max,
    )
    logprobs = [-1.0, -2.0, -3.0, -1.0]
    sampling = [-1.0 - log(4), -2.0 + log(4), -3.0 - log(2), NAN]
    loss, gradient, metrics = sequence_loss(config, 1.0, logprobs, sampling_logprobs=sampling)
    assert loss == pytest.approx(-sum(weights))
    assert gradient == pytest.approx([-weight for weight in weights])
    assert metrics["importance_sampling_weight_mean"] == pytest.approx(sum(weights) / 4)
    assert metrics["importance_sampling_clip_fraction"] == pytest.approx(beyond)
    # sampling − lp of the three tokens that are known: −ln 4, ln 4, −ln 2; k3 of each: w − 1 − ln w.
    assert metrics["kl_to_sampler"] == pytest.approx(-log(2) / 3)
    k3 = (4 - 1 - log(4)) + (0.25 - 1 + log(4)) + (2 - 1 - log(2))
    assert metrics["kl_to_sampler_k3"] == pytest.approx(k3 / 3)
    assert metrics["sampling_logprob_difference_max"] == pytest.approx(log(4))
    assert metrics["sampling_logprob_difference_min"] == pytest.approx(log(2))


def test_the_correction_is_of_the_old_policy_and_leaves_the_kl_alone() -> None:
    # old − sampling = ln 2, lp − old = ln 1.1: ℓ = −2·1.1 and beta·KL of d = −ln 2, each with its own slope.
    config = LossConfig(beta=1.0, use_bias_correction_kl=False)
    others = {"sampling_logprobs": LOGPROB - log(1.1) - log(2), "ref_logprobs": LOGPROB + log(2)}
    assert token_loss(config, 1.0, 1.1, **others) == (pytest.approx(-2.2 + 1 - log(2)), pytest.approx(-2.2 - 1.0))
    off = LossConfig(vllm_importance_sampling_correction=False)
    assert token_loss(off, 1.0, 1.1, sampling_logprobs=-9.0) == (pytest.approx(-1.1), pytest.approx(-1.1))


@pytest.mark.parametrize(
    ("advantage", "threshold", "sampling", "old", "stays"),
    [
        # The mean of (sampling − lp) over the two tokens is (1 + 0.2)/2 = 0.6.
        (-1.0, 0.5, [0.0, -1.8], None, False),
        (-1.0, 0.7, [0.0, -1.8], None, True),
        (0.0, 0.5, [0.0, -1.8], None, True),
        (1.0, 0.5, [0.0, -1.8], None, True),
        (-1.0, 0.5, [0.0, NAN], None, True),  # unknown: no evidence, (1 + 0)/2
        (-1.0, 0.4, [0.0, NAN], None, False),
        # Without the sampler the old policy is asked; with it, it is not.
        (-1.0, 0.5, None, [0.0, -1.8], False),
        (-1.0, 0.7, None, [0.0, -1.8], True),
        (-1.0, 0.5, [-1.0, -2.0], [0.0, -1.8], True),
    ],
)
def test_off_policy_sequences(
    advantage: float, threshold: float, sampling: list[float] | None, old: list[float] | None, stays: bool
) -> None:
    # The KL is kept whatever happens: d = −ln 2, (1 − ln 2)·2, slope −1 each.
    config = LossConfig(
        loss_type="cispo",
        epsilon_high=5.0,
        off_policy_mask_threshold=threshold,
        vllm_importance_sampling_correction=False,
        beta=1.0,
        use_bias_correction_kl=False,
    )
    ref = [-1.0 + log(2), -2.0 + log(2)]
    _, gradient, metrics = sequence_loss(
        config, advantage, [-1.0, -2.0], sampling_logprobs=sampling, old_logprobs=old, ref_logprobs=ref
    )
    # cispo's slope is −w·A with w = exp(lp − old).
    ratios = [1.0, 1.0] if old is None else [exp(-1.0), exp(-0.2)]
    assert gradient == pytest.approx([(-ratio * advantage if stays else 0.0) - 1.0 for ratio in ratios])
    assert metrics["off_policy_masked_fraction"] == (0.0 if stays else 1.0)


@pytest.mark.parametrize(
    ("quantile", "threshold", "kept"),
    [
        # Entropies 1, 3, 2, 5: sorted 1 2 3 5; position (1 − q)·3.
        (1.0, None, [1, 1, 1, 1]),
        (0.5, None, [0, 1, 0, 1]),  # 1.5: halfway between 2 and 3
        (2 / 3, None, [0, 1, 1, 1]),  # 1: exactly 2, which is kept
        (0.1, None, [0, 0, 0, 1]),  # 2.7: 3 + 0.7·2
        (0.5, 4.0, [0, 0, 0, 1]),  # the step's, whatever the tokens here are
    ],
)
def test_top_entropy_tokens(quantile: float, threshold: float | None, kept: list[int]) -> None:
    # A = 1 and ratio 1: slope −1 where kept; the KL, slope −1, everywhere. bnpo divides by all 4 tokens, kept or not.
    config = LossConfig(
        loss_type="bnpo", top_entropy_quantile=quantile, beta=1.0, use_bias_correction_kl=False, kl_estimator="k3"
    )
    lp_BT = tensor([[-1.0, -2.0, -3.0, -4.0]], dtype=torch.float64, requires_grad=True)
    loss, _ = policy_loss(
        lp_BT,
        tensor([1.0], dtype=torch.float64),
        torch.ones_like(lp_BT),
        config=config,
        ref_logprobs_BT=lp_BT.detach() + log(2),
        entropies_BT=tensor([[1.0, 3.0, 2.0, 5.0]]),
        entropy_threshold=threshold,
    )
    loss.backward()
    assert lp_BT.grad is not None
    assert_close(lp_BT.grad, tensor([[-1.0 - keep for keep in kept]], dtype=torch.float64) / 4)


def test_the_entropy_threshold_of_a_step() -> None:
    assert step_entropy_threshold(tensor([0.0, 1.0, 2.0, 3.0, 4.0]), 0.5) == 2.0
    assert step_entropy_threshold(tensor([[0.0, 1.0], [2.0, 3.0]]), 0.5) == 1.5
    assert step_entropy_threshold(tensor([7.0]), 0.2) == 7.0
    assert step_entropy_threshold(tensor([]), 0.2) == math.inf
    for count in range(2, 50):  # exactly a value where the position is whole, however (1 − 0.8)·5 is rounded
        values = torch.arange(count, dtype=torch.float32) / 7
        assert step_entropy_threshold(values, 1 - 1 / (count - 1)) == values[1]
    random: Tensor = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    for quantile in (0.05, 0.2, 0.5, 0.77, 1.0):
        expected = torch.quantile(random, 1 - quantile).item()
        assert step_entropy_threshold(random, quantile) == pytest.approx(expected, rel=1e-5)
