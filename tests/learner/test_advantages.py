"""Golden advantages, the arithmetic beside them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from learner.advantages import group_advantages

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


def test_equal_rewards_and_no_eps_are_no_advantage() -> None:
    assert_close(group_advantages(tensor([[0.1, 0.1, 0.1]]), eps=0.0, scale="group"), torch.zeros(1, 3))


def test_bad_rewards() -> None:
    with pytest.raises(ValueError, match="shape"):
        group_advantages(tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="infinite"):
        group_advantages(tensor([[math.inf, 2.0]]))
    with pytest.raises(ValueError, match="scale"):
        group_advantages(tensor([[1.0, 2.0]]), scale="std")  # type: ignore[arg-type]
