import asyncio
import re

import pytest

from learner.types import UPDATE_METRICS, ScoredCompletion, ScoredGroup, UpdateMetrics
from orchestration.run.metrics import METRICS, OTHER, PHASES, PhaseClock, step_row
from rollout_server.types import Completion, FinishReason

REWARDS = ("gsm8k_format", "gsm8k_correctness")


def member(
    rewards: tuple[float | None, ...], total: float | None, *, length: int = 4, cut: bool = False, version: int = 0
) -> ScoredCompletion:
    completion = Completion(
        prompt_id="p",
        token_ids=tuple(range(length)),
        sampling_logprobs=(-1.0,) * length,
        text="x",
        finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
        adapter_version=version,
    )
    return ScoredCompletion(completion=completion, rewards=rewards, total=total)


def group(*members: ScoredCompletion) -> ScoredGroup:
    return ScoredGroup(prompt_id="p", prompt_token_ids=(1, 2), members=members)


GROUPS = (
    group(member((0.5, 1.0), 1.5, length=2, version=3), member((0.5, 0.0), 0.5, length=4, version=3)),
    group(member((0.0, 0.0), 0.0, length=6, cut=True, version=2), member((None, None), None, length=8, version=1)),
)
UPDATE = UpdateMetrics(
    step=4,
    values={"loss": 0.25, "kl_to_sampler": 0.001, "clip_fraction": 0.0, "entropy": 1.5},
    advantages=((1.0, -1.0), (0.0, None)),
    num_tokens=28,
    num_distinct_tokens=20,
    seconds=0.5,
)
SECONDS = {"generation": 4.0, "scoring": 0.5, "learning": 0.5, "publishing": 0.25, "evaluation": 0.0, OTHER: 0.25}


def row_of(groups: tuple[ScoredGroup, ...] = GROUPS, update: UpdateMetrics = UPDATE, **changes: object) -> dict:
    arguments = {
        "groups": groups,
        "update": update,
        "reward_names": REWARDS,
        "strict_rewards": {"": "gsm8k_correctness"},
        "phase_seconds": SECONDS,
        "generated_tokens": 40,
        "step_seconds": 5.5,
    }
    return step_row(**{**arguments, **changes})


def test_rewards_leave_out_what_was_not_scored() -> None:
    row = row_of()
    assert row["num_unscored"] == 1
    assert row["reward_mean"] == pytest.approx(2.0 / 3)  # 1.5, 0.5, 0.0
    assert row["reward_std"] == pytest.approx((1.1666666 / 3) ** 0.5, rel=1e-5)  # squares 0.694 + 0.0278 + 0.444
    assert row["reward_group_std"] == pytest.approx(0.25)  # 0.5 and 0.0
    assert row["reward_gsm8k_format_mean"] == pytest.approx(1.0 / 3)
    assert row["reward_gsm8k_correctness_std"] == pytest.approx((2 / 9) ** 0.5)
    assert row["accuracy"] == pytest.approx(1 / 3)


def test_lengths_ages_and_flat_groups() -> None:
    row = row_of()
    assert row["response_tokens_mean"] == 5.0
    assert row["response_tokens_max"] == 8
    assert row["truncated_fraction"] == 0.25
    assert (row["step"], row["policy_version"]) == (4, 3)
    assert row["policy_age_mean"] == 0.75  # 0, 0, 1, 2
    assert row["policy_age_max"] == 2
    assert row["flat_group_fraction"] == 0.5  # of the second group only one member was scored


def test_rates_and_the_learners_own_figures() -> None:
    row = row_of()
    assert row["rollout_tokens_per_s"] == 10.0
    assert row["learner_tokens_per_s"] == 56.0
    assert row["generation_s"] == 4.0
    assert row["entropy"] == 1.5
    assert row["kl_to_sampler"] == 0.001


def test_generation_rate_is_over_busy_time_when_that_is_known() -> None:
    row = row_of(busy_seconds={"generation": 8.0})
    assert row["rollout_tokens_per_s"] == 5.0
    assert row["generation_busy_s"] == 8.0


def test_nothing_scored_nothing_measured() -> None:
    groups = (group(member((None,), None)),)
    row = row_of(groups, UpdateMetrics(step=1), reward_names=("other_reward",), phase_seconds={})
    for name in ("reward_mean", "reward_std", "accuracy", "reward_other_reward_mean", "rollout_tokens_per_s"):
        assert row[name] is None
    assert row["learner_tokens_per_s"] is None
    assert row["kl_to_sampler"] is None


def test_a_reward_without_its_name_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        row_of(reward_names=("gsm8k_format",))


def test_every_name_of_a_row_is_documented() -> None:
    row = row_of(busy_seconds={"generation": 8.0})
    patterns = [
        re.escape(name)
        .replace(r"\{name\}", f"({'|'.join(REWARDS)})")
        .replace(r"\{phase\}", f"({'|'.join(SECONDS)})")
        .replace(r"\{age\}", r"\d+")
        for name in METRICS
    ]
    assert [name for name in row if not any(re.fullmatch(pattern, name) for pattern in patterns)] == []
    assert all(name in row for name in METRICS.keys() - UPDATE_METRICS.keys() if "{" not in name)


def test_a_figure_of_the_learner_never_hides_behind_one_of_the_run() -> None:
    with pytest.raises(ValueError, match="both have metrics of the names reward_std"):
        row_of(update=UpdateMetrics(step=1, values={"reward_std": 0.5}))


class Time:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_one_after_the_other() -> None:
    now = Time()
    clock = PhaseClock(now)
    now.now += 1  # other
    with clock.phase("generation"):
        now.now += 2
    with clock.phase("learning"):
        now.now += 4
    assert clock.seconds() == {**dict.fromkeys(PHASES, 0.0), "generation": 2.0, "learning": 4.0, OTHER: 1.0}


def test_many_tasks_in_one_phase_count_once() -> None:
    now = Time()
    clock = PhaseClock(now)
    with clock.phase("generation"):
        now.now += 1
        with clock.phase("generation"), clock.phase("generation"):
            now.now += 1
        now.now += 1
    assert clock.seconds()["generation"] == 3.0
    assert clock.busy_seconds()["generation"] == 3.0
    assert clock.seconds()[OTHER] == 0.0


def test_overlapping_phases_share_the_wall_time_by_precedence() -> None:
    now = Time()
    clock = PhaseClock(now)
    generation, scoring, learning = clock.phase("generation"), clock.phase("scoring"), clock.phase("learning")
    generation.__enter__()
    now.now += 1  # generation alone
    scoring.__enter__()
    now.now += 2  # generation hides scoring
    learning.__enter__()
    now.now += 4  # learning hides both
    generation.__exit__(None, None, None)
    learning.__exit__(None, None, None)
    now.now += 8  # scoring alone
    scoring.__exit__(None, None, None)
    seconds, busy = clock.seconds(), clock.busy_seconds()
    assert (seconds["generation"], seconds["learning"], seconds["scoring"]) == (3.0, 4.0, 8.0)
    assert (busy["generation"], busy["learning"], busy["scoring"]) == (7.0, 4.0, 14.0)
    assert sum(seconds.values()) == now.now - 100.0


def test_generation_within_an_evaluation_is_evaluation() -> None:
    now = Time()
    clock = PhaseClock(now)
    with clock.phase("evaluation"), clock.phase("generation"):
        now.now += 5
    assert clock.seconds()["evaluation"] == 5.0
    assert clock.seconds()["generation"] == 0.0


def test_a_phase_ends_with_its_error_and_open_phases_count_up_to_now() -> None:
    now = Time()
    clock = PhaseClock(now)

    def fail() -> None:
        now.now += 1
        raise RuntimeError

    with pytest.raises(RuntimeError), clock.phase("scoring"):
        fail()
    with clock.phase("learning"):
        now.now += 2
        assert clock.seconds()["learning"] == 2.0
    assert clock.seconds()["scoring"] == 1.0


def test_unknown_phase() -> None:
    with pytest.raises(ValueError, match="unknown phase 'lerning'; phases are: learning, publishing"):
        PhaseClock().phase("lerning").__enter__()


async def test_asyncio_tasks_interleave_as_they_like() -> None:
    clock = PhaseClock()

    async def group_of(seconds: float) -> None:
        with clock.phase("generation"):
            await asyncio.sleep(seconds)
        with clock.phase("scoring"):
            await asyncio.sleep(seconds / 2)

    await asyncio.gather(*(group_of(0.01 * (1 + i % 3)) for i in range(20)))
    seconds, busy = clock.seconds(), clock.busy_seconds()
    assert seconds["generation"] == pytest.approx(busy["generation"], abs=0.005)  # generation hides scoring
    assert seconds["scoring"] < busy["scoring"]
    assert sum(seconds.values()) < 0.5
