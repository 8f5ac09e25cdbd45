"""Golden advantages, the arithmetic beside them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from learner.advantages import aggregate_advantages, group_advantages, overlong_penalty

NAN = math.nan


def test_group_scale() -> None:
    # [1, 0, 0, 1]: mean 1/2, squares 4·1/4 = 1, s = sqrt(1/3); [3, 3, 3, 3]: s = 0, deviations 0.
    a = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    expected = tensor([[a, -a, -a, a], [0.0, 0.0, 0.0, 0.0]])
    assert_close(group_advantages(tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 3.0, 3.0, 3.0]])), expected)


def test_ddof_and_eps() -> None:
    # [0, 2]: mean 1, squares 2; ddof 0: s = 1, so ±1 / (1 + 1); ddof 1: s = sqrt(2).
    rewards = tensor([[0.0, 2.0]])
    assert_close(group_advantages(rewards, ddof=0, eps=1.0), tensor([[-0.5, 0.5]]))
    assert_close(group_advantages(rewards, ddof=1, eps=0.0), tensor([[-1.0, 1.0]]) / math.sqrt(2.0))


def test_batch_scale_keeps_the_mean_of_the_group() -> None:
    # All rewards 0, 2, 4, 6: mean 3, squares 9 + 1 + 1 + 9 = 20, s = sqrt(20/3). Group means 1 and 5, deviations ±1.
    a = 1.0 / (math.sqrt(20 / 3) + 1e-4)
    advantages = group_advantages(tensor([[0.0, 2.0], [4.0, 6.0]]), scale="batch")
    assert_close(advantages, tensor([[-a, a], [-a, a]]))


def test_no_scale() -> None:
    assert_close(group_advantages(tensor([[0.0, 3.0, 0.0]]), scale="none"), tensor([[-1.0, 2.0, -1.0]]))


def test_what_was_not_scored_is_left_out() -> None:
    # [1, 0, NaN, 1]: mean 2/3; squares 1/9 + 4/9 + 1/9 = 2/3; s = sqrt(1/3).
    s = math.sqrt(1 / 3) + 1e-4
    advantages = group_advantages(tensor([[1.0, 0.0, NAN, 1.0], [NAN, NAN, NAN, NAN]]))
    assert_close(advantages[0], tensor([1 / 3 / s, -2 / 3 / s, NAN, 1 / 3 / s]), equal_nan=True)
    assert advantages[1].isnan().all()


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_one_scored_member_has_no_advantage(scale: str) -> None:
    advantages = group_advantages(tensor([[5.0, NAN]]), scale=scale)  # type: ignore[arg-type]
    assert_close(advantages, tensor([[0.0, NAN]]), equal_nan=True)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_are_no_advantage_however_they_round(scale: str) -> None:
    # The sum of seven times 0.1 is not 0.7 in float32; with eps 0 the rounding would count as much as a reward.
    rewards = tensor([[0.1] * 7, [-1.1] * 7])
    advantages = group_advantages(rewards, eps=0.0, scale=scale)  # type: ignore[arg-type]
    assert_close(advantages, torch.zeros(2, 7), atol=0.0, rtol=0.0)


def test_batch_scale_by_category() -> None:
    # Category a: 0, 2 and 4, 6, as above: s = sqrt(20/3); category b: 0, 4: mean 2, squares 8, s = sqrt(8).
    rewards = tensor([[0.0, 2.0], [0.0, 4.0], [4.0, 6.0]], dtype=torch.float64)
    advantages = group_advantages(rewards, scale="batch", eps=0.0, categories_P=["a", "b", "a"])
    a, b = 1 / math.sqrt(20 / 3), 2 / math.sqrt(8)
    assert_close(advantages, tensor([[-a, a], [-b, b], [-a, a]], dtype=torch.float64))
    # The other scales have no batch to take apart.
    grouped = group_advantages(rewards, categories_P=["a", "b", "a"])
    assert_close(grouped, group_advantages(rewards))


REWARDS = tensor([[[1.0, 4.0], [0.0, NAN]], [[NAN, NAN], [2.0, 2.0]]], dtype=torch.float64)
"""Two groups of two, two rewards; the first of the second group was scored by none."""
WEIGHTS = tensor([1.0, 0.5], dtype=torch.float64)


def test_several_rewards_summed_then_normalised() -> None:
    # Totals 1 + 2 = 3 and 0; NaN and 2 + 1 = 3. Deviations ±1.5, s = sqrt(4.5); alone in its group: 0.
    a = 1.5 / (math.sqrt(4.5) + 1e-4)
    advantages = aggregate_advantages(REWARDS, WEIGHTS)
    assert_close(advantages, tensor([[a, -a], [NAN, 0.0]], dtype=torch.float64), equal_nan=True)
    # Over the batch: 3, 0, 3: mean 2, squares 1 + 4 + 1 = 6, s = sqrt(3).
    b = 1.5 / math.sqrt(3)
    advantages = aggregate_advantages(REWARDS, WEIGHTS, scale="batch", eps=0.0)
    assert_close(advantages, tensor([[b, -b], [NAN, 0.0]], dtype=torch.float64), equal_nan=True)


def test_several_rewards_normalised_then_summed() -> None:
    # First reward: 1, 0: ±0.5 / sqrt(1/2) = ±1/sqrt 2; second: alone in its group, 0. Sums u, −u, NaN, 0 with
    # u = 1/sqrt 2: mean 0, squares 1, ddof 1: s = sqrt(1/2) = u. So 1, −1, NaN, 0, whatever the scale.
    for scale in ("group", "batch", "none"):
        advantages = aggregate_advantages(
            REWARDS,
            WEIGHTS,
            aggregation="normalize_then_sum",
            scale=scale,  # type: ignore[arg-type]
            eps=0.0,
        )
        assert_close(advantages, tensor([[1.0, -1.0], [NAN, 0.0]], dtype=torch.float64), equal_nan=True)


def test_normalised_rewards_weigh_the_same_whatever_their_range() -> None:
    # Each reward's deviations are ±1 with ddof 0 (0 and 2: s = 1; 0 and 200: s = 100). Group 1: 1 + 1 and −1 − 1;
    # group 2: 1 − 1 twice. Sums 2, −2, 0, 0: s = sqrt(8/4).
    rewards = tensor([[[2.0, 200.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 200.0]]], dtype=torch.float64)
    weights = tensor([1.0, 1.0], dtype=torch.float64)
    advantages = aggregate_advantages(rewards, weights, aggregation="normalize_then_sum", ddof=0, eps=0.0)
    a = 2 / math.sqrt(2)
    assert_close(advantages, tensor([[a, -a], [0.0, 0.0]], dtype=torch.float64))
    # eps is added both times, whatever the scale: ±1/(1 + 1) and ±100/(100 + 1) make ±(1/2 + 100/101) and
    # ±(1/2 − 100/101).
    advantages = aggregate_advantages(rewards, weights, aggregation="normalize_then_sum", scale="none", ddof=0, eps=1.0)
    u, v = 1 / 2 + 100 / 101, 1 / 2 - 100 / 101
    s = math.sqrt((u**2 + v**2) / 2) + 1.0
    assert_close(advantages, tensor([[u / s, -u / s], [v / s, -v / s]], dtype=torch.float64))
    # By category each group is divided by its own: ±2/2.
    by_category = aggregate_advantages(
        rewards, weights, aggregation="normalize_then_sum", ddof=0, eps=0.0, categories_P=["a", "b"]
    )
    assert_close(by_category, tensor([[1.0, -1.0], [0.0, 0.0]], dtype=torch.float64))


def test_overlong_penalty() -> None:
    # Maximum 100, cache 20: 0 up to 80, then −1/20 a token, −1 at 100 and beyond.
    penalty = overlong_penalty(tensor([1, 80, 81, 90, 100, 120]), max_completion_length=100, cache=20)
    assert_close(penalty, tensor([0.0, 0.0, -0.05, -0.5, -1.0, -1.0]))
    assert_close(overlong_penalty(tensor([100]), max_completion_length=100, cache=0), tensor([0.0]))
    for cache in (-1, 101):
        with pytest.raises(ValueError, match="cache"):
            overlong_penalty(tensor([1]), max_completion_length=100, cache=cache)


def test_bad_rewards() -> None:
    with pytest.raises(ValueError, match="category for each of 1"):
        group_advantages(tensor([[1.0, 2.0]]), categories_P=["a", "b"])
    with pytest.raises(ValueError, match="weights_K"):
        aggregate_advantages(REWARDS, tensor([1.0]))
    with pytest.raises(ValueError, match="aggregation"):
        aggregate_advantages(REWARDS, WEIGHTS, aggregation="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shape"):
        group_advantages(tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="infinite"):
        group_advantages(tensor([[math.inf, 2.0]]))
    with pytest.raises(ValueError, match="scale"):
        group_advantages(tensor([[1.0, 2.0]]), scale="std")  # type: ignore[arg-type]
