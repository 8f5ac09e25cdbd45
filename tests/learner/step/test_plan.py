"""Who takes part in a step, with which advantage, and what everything is divided by."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from learner.config import LearnerConfig
from learner.errors import LearnerError, NothingToLearnError
from learner.step.plan import StepPlan, plan_step
from learner.types import ScoredCompletion, ScoredGroup
from rollout_server.arrays import TokenIds
from rollout_server.types import Completion, EpisodeTurn, FinishReason, Fork
from tests.learner.helpers import make_group


def plan(*groups: ScoredGroup, reward_weights: tuple[float, ...] | None = None, **settings: object) -> StepPlan:
    config = LearnerConfig.model_validate({"advantage_eps": 0.0, **settings})
    return plan_step(groups, config, reward_weights=reward_weights, max_completion_length=4)


def with_rewards(group: ScoredGroup, *rewards: tuple[float | None, ...]) -> ScoredGroup:
    members = tuple(replace(member, rewards=row) for member, row in zip(group.members, rewards, strict=True))
    return replace(group, members=members)


LEARNS = make_group((1, 2), [(3,), (4, 5)], [1.0, 0.0])
FLAT = make_group((1, 6), [(7, 8), (9,)], [1.0, 1.0], prompt_id="flat")


def test_flat_groups_are_not_computed_and_count_all_the_same() -> None:
    found = plan(LEARNS, FLAT, scale_rewards="none")
    assert found.advantages == (0.5, -0.5)
    assert found.group_advantages == ((0.5, -0.5), (0.0, 0.0))
    assert (found.num_items, found.num_sequences, found.num_tokens) == (6, 4, 14)


def test_flat_groups_are_dropped_when_asked() -> None:
    found = plan(LEARNS, FLAT, drop_zero_variance_groups=True)
    assert (found.num_items, found.num_sequences) == (3, 2)


def test_a_flat_group_with_an_unscored_member_is_dropped_too() -> None:
    unscored = make_group((1, 6), [(7, 8), (9,), (9, 9), (5,)], [1.0, 1.0, 1.0, None])
    found = plan(LEARNS, unscored, drop_zero_variance_groups=True)
    assert (found.num_items, found.num_sequences) == (3, 2)
    assert found.group_advantages[1] == (0.0, 0.0, 0.0, None)


ROUNDED = make_group((1, 6), [(7,), (8,), (9,)], [0.1 + 0.2, 0.3, None])
"""Sums that are equal on paper."""
CANCELLED = with_rewards(make_group((1, 6), [(7,), (8,)], [0.1 + 0.2 - 0.3, 0.0]), (0.1 + 0.2, -0.3), (0.3, -0.3))
"""The same, where the totals are nothing but rounding: of rewards of 0.3."""


@pytest.mark.parametrize("group", [ROUNDED, CANCELLED])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_rewards_that_differ_by_rounding_are_equal(group: ScoredGroup, scale: str) -> None:
    assert group.flat
    assert {*plan(group, scale_rewards=scale).group_advantages[0]} <= {0.0, None}
    found = plan(LEARNS, group, scale_rewards=scale, drop_zero_variance_groups=True)
    assert (found.num_items, found.num_sequences) == (3, 2)


@pytest.mark.parametrize(
    ("rewards", "flat"),
    [([1.0, 1.0 + 1e-9], False), ([1e-12, 0.0], False), ([5.0, None], True), ([None, None], True), ([0.0, 0.0], True)],
)
def test_small_differences_are_no_rounding(rewards: list[float | None], flat: bool) -> None:
    assert make_group((1,), [(2,), (3,)], rewards).flat == flat


def test_nan_is_not_scored_and_infinity_is_refused() -> None:
    group = make_group((1, 2), [(3,), (4,), (5,)], [1.0, math.nan, 0.0])
    assert group.members[1].total is None
    assert group.members[1].rewards == (None,)
    assert plan(group, scale_rewards="none").group_advantages == ((0.5, None, -0.5),)
    assert make_group((1, 2), [(3,), (4,)], [math.nan, 1.0]).flat
    with pytest.raises(NothingToLearnError, match="none of the 2"):
        plan(make_group((1, 2), [(3,), (4,)], [math.nan, math.nan]))
    for reward in (math.inf, -math.inf):
        with pytest.raises(ValueError, match=r"of 'p' earned -?inf: a reward is a finite number, or None"):
            make_group((1, 2), [(3,)], [reward])


def test_equal_totals_of_unequal_lengths_are_told_apart_by_the_overlong_penalty() -> None:
    group = make_group((1, 2), [(3,), (4, 4, 4, 4)], [0.1 + 0.2, 0.3])
    found = plan(group, scale_rewards="none", overlong_cache=2, drop_zero_variance_groups=True)
    assert group.flat
    assert found.group_advantages[0] == (0.5, -0.5)


@pytest.mark.parametrize("loss", [{"beta": 0.1}, {"top_entropy_quantile": 0.5}])
def test_flat_groups_are_computed_where_they_have_a_say(loss: dict[str, float]) -> None:
    assert len(plan(LEARNS, FLAT, loss=loss).sequences) == 4


def test_a_truncated_completion_is_masked_and_counts_as_a_sequence() -> None:
    cut_off = make_group((1, 2), [(3,), (4, 5)], [1.0, 0.0], finish_reason=FinishReason.LENGTH)
    found = plan(cut_off, LEARNS, mask_truncated_completions=True)
    assert (len(found.sequences), found.num_items, found.num_sequences) == (2, 3, 4)


def test_what_was_not_scored_is_nowhere() -> None:
    found = plan(make_group((1, 2), [(3,), (4,), (5,)], [1.0, None, 0.0]), scale_rewards="none")
    assert found.group_advantages == ((0.5, None, -0.5),)
    assert (len(found.sequences), found.num_sequences) == (2, 2)
    with pytest.raises(NothingToLearnError, match="none of the 2"):
        plan(make_group((1, 2), [(3,), (4,)], [None, None]))


def test_each_reward_is_normalised_before_they_are_summed() -> None:
    # Format (0, 1) and correctness (4, 0) in equal parts: normalised alone each is ±1/√2, and they cancel out; summed
    # first, correctness decides. A power of two, so that they cancel exactly on every machine.
    group = with_rewards(make_group((1, 2), [(3,), (4,)], [4.0, 1.0]), (0.0, 4.0), (1.0, 0.0))
    summed = plan(group).group_advantages[0]
    assert summed == pytest.approx((math.sqrt(0.5), -math.sqrt(0.5)))
    apart = plan(group, multi_objective_aggregation="normalize_then_sum").group_advantages[0]
    assert apart == pytest.approx((0.0, 0.0))
    # With correctness weighing three times as much the sums are ±2/√2, which the batch's deviation of 2 divides.
    weighed = plan(group, multi_objective_aggregation="normalize_then_sum", reward_weights=(1.0, 3.0))
    assert weighed.group_advantages[0] == pytest.approx((math.sqrt(0.5), -math.sqrt(0.5)))
    with pytest.raises(LearnerError, match="3 weights"):
        plan(group, multi_objective_aggregation="normalize_then_sum", reward_weights=(1.0, 1.0, 1.0))


def test_an_overlong_completion_earns_less() -> None:
    # L = 4 and a cache of 2: lengths 2, 3, 4 cost 0, 1/2, 1.
    group = make_group((1, 2), [(3, 3), (4, 4, 4), (5, 5, 5, 5)], [1.0, 1.0, 1.0])
    found = plan(group, scale_rewards="none", overlong_cache=2)
    assert found.group_advantages[0] == pytest.approx((0.5, 0.0, -0.5))
    # Beside several rewards it is one more, of weight 1.
    both = with_rewards(group, (1.0, 0.0), (1.0, 0.0), (1.0, 0.0))
    apart = plan(both, multi_objective_aggregation="normalize_then_sum", overlong_cache=2)
    assert apart.group_advantages[0] == pytest.approx((1.0, 0.0, -1.0))


def test_a_deviation_divides_by_n_minus_ddof() -> None:
    # Of 1 and 0, the squares add up to 1/2: over n - 1 it is 1/2, over n 1/4.
    assert plan(LEARNS, advantage_ddof=1).advantages == pytest.approx((math.sqrt(0.5), -math.sqrt(0.5)))
    assert plan(LEARNS, advantage_ddof=0).advantages == pytest.approx((1.0, -1.0))


def test_a_category_has_a_deviation_of_its_own() -> None:
    easy = replace(make_group((1, 2), [(3,), (4,)], [1.0, 0.0]), category="easy")
    hard = replace(make_group((1, 5), [(6,), (7,)], [10.0, 0.0]), category="hard")
    found = plan(easy, hard, scale_rewards="batch", advantage_by_category=True)
    half = math.sqrt(0.5)  # ±1/2 over √(1/2), ±5 over √50
    assert found.group_advantages == (pytest.approx((half, -half)), pytest.approx((half, -half)))
    together = plan(easy, hard, scale_rewards="batch").group_advantages
    assert together[0][0] != pytest.approx(half)


def episode(lengths: tuple[int, ...], first: int, forks: tuple[Fork, ...] = ()) -> Completion:
    """Turns of so many tokens, with one given token behind each."""
    starts = [sum(lengths[:t]) + t for t in range(len(lengths))]
    size = starts[-1] + lengths[-1]
    return Completion(
        prompt_id="p",
        token_ids=range(first, first + size),
        sampling_logprobs=[-1.0] * size,
        text="",
        finish_reason=FinishReason.STOP,
        adapter_version=0,
        turns=tuple(
            EpisodeTurn(start=start, stop=start + length, text="", finish_reason=FinishReason.STOP, adapter_version=0)
            for start, length in zip(starts, lengths, strict=True)
        ),
        forks=forks,
    )


def test_an_episode_whose_history_was_rewritten_is_several_sequences_and_each_sampled_token_is_learned_once() -> None:
    fork = Fork(start=6, prompt_token_ids=TokenIds((1, 2, 99)))
    whole = ScoredCompletion(completion=episode((2, 2, 3), 20, (fork,)), rewards=(1.0,), total=1.0)
    plain = ScoredCompletion(completion=episode((2,), 40), rewards=(0.0,), total=0.0)
    group = ScoredGroup(prompt_id="p", prompt_token_ids=(1, 2), members=(whole, plain))
    found = plan(group, scale_rewards="none")
    assert [tuple(one.prompt_token_ids) for one in found.sequences] == [(1, 2), (1, 2, 99), (1, 2)]
    learned = [token for one in found.sequences for a, b in one.predicted for token in one.completion_token_ids[a:b]]
    assert learned == [20, 21, 23, 24, 26, 27, 28, 40, 41]
    assert found.advantages == (0.5, 0.5, -0.5)
    assert found.places == ((0, 0), (0, 0), (0, 1))
    assert (found.num_items, found.num_sequences, found.num_tokens) == (9, 3, 8 + 6 + 4)


def test_turns_that_are_judged_each_are_compared_with_the_same_turn_of_the_others() -> None:
    totals = ((3.0, 1.0), (1.0,), (2.0, 5.0))
    members = tuple(
        ScoredCompletion(completion=episode((1, 3)[: len(own)], 20), rewards=(0.0,), total=0.0, turn_totals=own)
        for own in totals
    )
    group = ScoredGroup(prompt_id="p", prompt_token_ids=(1, 2), members=members)
    assert not group.flat
    found = plan(group, scale_rewards="none", loss={"beta": 0.1})
    assert found.advantages == (1.0, -2.0, -1.0, 0.0, 2.0)
    assert tuple(found.sequences[1].prompt_token_ids) == (1, 2, 20, 21)  # all that came before
    assert tuple(found.sequences[1].completion_token_ids) == (22, 23, 24)
    assert found.group_advantages == (((1.0 - 6.0) / 4, -1.0, 6.0 / 4),)
    assert found.num_items == 4 + 1 + 4
    alone = replace(group, members=(members[0], replace(members[1], turn_totals=(3.0,))))
    assert alone.flat  # one came to a second turn: nothing to compare it with


@pytest.mark.parametrize("masks", [False, True])
def test_an_episode_that_a_limit_ended_is_learned_from_as_the_setting_says(masks: bool) -> None:
    long, short = episode((2, 1), 20), episode((2,), 40)
    members = [
        ScoredCompletion(completion=replace(one, finish_reason=reason), rewards=(total,), total=total)
        for one, reason, total in ((long, FinishReason.TURNS, 0.0), (short, FinishReason.STOP, 1.0))
    ]
    found = plan(
        ScoredGroup(prompt_id="p", prompt_token_ids=(1, 2), members=tuple(members)), mask_truncated_completions=masks
    )
    assert len(found.sequences) == (1 if masks else 2)
    assert (found.num_items, found.num_sequences) == (2 if masks else 5, 2)
