"""The data order: every problem once an epoch, resumable from one integer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.data.cursor import DataCursor
from orchestration.types import Problem


def problems(count: int) -> list[Problem]:
    return [
        Problem(problem_id=str(index), question=str(index), reference={"final_answer": "1"}) for index in range(count)
    ]


def ids(taken: list[Problem]) -> list[str]:
    return [problem.problem_id for problem in taken]


@given(size=st.integers(1, 20), seed=st.integers(0, 99), epochs=st.integers(1, 4))
def test_each_epoch_holds_every_problem_once(size: int, seed: int, epochs: int) -> None:
    cursor = DataCursor(problems(size), seed)
    for epoch in range(epochs):
        assert cursor.epoch == epoch
        assert sorted(ids(cursor.take(size)), key=int) == [str(index) for index in range(size)]


@given(size=st.integers(1, 20), seed=st.integers(0, 99), first=st.integers(0, 50), second=st.integers(0, 50))
def test_a_cursor_made_from_a_position_goes_on_where_the_other_stopped(
    size: int, seed: int, first: int, second: int
) -> None:
    through = DataCursor(problems(size), seed)
    through.take(first)
    resumed = DataCursor(problems(size), seed, through.position)
    assert ids(resumed.take(second)) == ids(through.take(second))
    assert resumed.position == through.position == first + second


def test_epochs_and_seeds_differ_in_order() -> None:
    cursor = DataCursor(problems(50), 0)
    first, second = ids(cursor.take(50)), ids(cursor.take(50))
    assert first != second
    assert first != ids(DataCursor(problems(50), 1).take(50))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="at least one problem"):
        DataCursor([], 0)
    with pytest.raises(ValueError, match="position must be at least 0, got -1"):
        DataCursor(problems(1), 0, -1)
