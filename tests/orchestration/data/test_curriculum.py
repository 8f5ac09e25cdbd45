"""Which problem is drawn next: shares by category, what is dropped, what is preferred; and going on bit for bit."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import pytest

from orchestration.data.curriculum import Curriculum
from orchestration.data.curriculum_config import CurriculumConfig
from orchestration.data.cursor import DataCursor
from orchestration.errors import ConfigError
from orchestration.run.ledger.records import packed, unpacked
from orchestration.types import CurriculumState, Problem


def problems(**counts: int) -> list[Problem]:
    return [
        Problem(problem_id=f"{name}{n}", question=f"{name}{n}", reference={}, category=name)
        for name, count in counts.items()
        for n in range(count)
    ]


def make(config: CurriculumConfig, state: CurriculumState | None = None, **counts: int) -> Curriculum:
    return Curriculum(problems(**counts), 3, config, state=state)


def take(curriculum: Curriculum, count: int) -> list[str]:
    return [curriculum.take().problem_id for _ in range(count)]


def test_without_options_it_is_the_cursors_order() -> None:
    cursor = DataCursor(problems(a=5, b=3), 3)
    assert take(make(CurriculumConfig(), a=5, b=3), 20) == [problem.problem_id for problem in cursor.take(20)]


def test_weights_are_shares_whatever_the_numbers_of_problems_are() -> None:
    names = take(make(CurriculumConfig(weights={"a": 1, "b": 2, "d": 0}), a=50, b=3, c=8, d=9), 40)
    assert Counter(name[0] for name in names) == {"a": 10, "b": 20, "c": 10}
    assert all(Counter(name[0] for name in names[:n])["b"] in (n // 2, (n + 1) // 2) for n in range(1, 41))


def test_what_is_always_or_never_solved_is_dropped_and_all_come_back_once_none_is_left() -> None:
    curriculum = make(CurriculumConfig(drop_solved_after=2, drop_unsolved_after=1), a=4)
    curriculum.observe("a0", 1.0)
    curriculum.observe("a1", 0.0)
    curriculum.observe("a2", 0.5)
    assert set(take(curriculum, 12)) == {"a0", "a2", "a3"}
    curriculum.observe("a0", 1.0)
    assert (curriculum.num_dropped, set(take(curriculum, 12))) == (2, {"a2", "a3"})
    for name in ("a2", "a2", "a3"):
        curriculum.observe(name, 0.0)
    assert set(take(curriculum, 12)) == {"a0", "a1", "a2", "a3"}


def test_a_category_with_nothing_left_leaves_its_share_to_the_others() -> None:
    curriculum = make(CurriculumConfig(weights={"a": 1, "b": 1}, drop_solved_after=1), a=1, b=4)
    curriculum.observe("a0", 1.0)
    assert {name[0] for name in take(curriculum, 8)} == {"b"}


def test_problems_near_the_target_are_preferred_and_unmeasured_ones_taken() -> None:
    curriculum = make(CurriculumConfig(target_pass_rate=0.5, least_share=0.1), a=3)
    curriculum.observe("a0", 0.5)
    curriculum.observe("a1", 1.0)
    counts = Counter(take(curriculum, 1000))
    assert counts["a0"] == pytest.approx(counts["a2"], abs=3), "measured at the target, and not measured"
    assert counts["a1"] == pytest.approx(counts["a0"] / 10, rel=0.4), "a tenth of them"


def test_it_goes_on_from_its_state_bit_for_bit() -> None:
    config = CurriculumConfig(weights={"a": 3, "b": 1}, drop_solved_after=1, target_pass_rate=0.4)
    whole, stopped = make(config, a=20, b=5), make(config, a=20, b=5)

    def step(curriculum: Curriculum, number: int) -> list[str]:
        names = take(curriculum, 6)
        for index, name in enumerate(names):
            curriculum.observe(name, ((number + index) % 5) / 4)
        return names

    steps = [step(whole, number) for number in range(12)]
    assert [step(stopped, number) for number in range(5)] == steps[:5]
    state = unpacked(packed(stopped.state()), CurriculumState)  # as it lies in a record
    resumed = make(config, state, a=20, b=5)
    assert [step(resumed, number) for number in range(5, 12)] == steps[5:]
    assert asdict(resumed.state()) == asdict(whole.state())


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({"x": 1}, r"curriculum\.weights: x=1: categories are: a, b"),
        ({"a": -1}, r"curriculum\.weights: a=-1: must not be negative"),
        ({"a": 0, "b": 0}, "leave nothing to draw"),
    ],
)
def test_wrong_weights_are_said(weights: dict[str, float], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make(CurriculumConfig(weights=weights), a=1, b=1)
