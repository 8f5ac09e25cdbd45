"""Tasks that make their problems: disjoint sets, the same for the same seed, and too many asked for."""

from __future__ import annotations

import itertools

import pytest

from orchestration.errors import ConfigError, DataError
from orchestration.settings.config import load_config

SMALL = ("data.num_train=30", "data.num_eval=6", "data.num_shots=2")


@pytest.mark.parametrize("task", ["code", "symbolic", "reasoning_gym"])
def test_sets_are_disjoint_and_follow_the_seed(task: str) -> None:
    if task == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    data = load_config("tiny", [f"data={task}", *SMALL]).data
    problems = data.load()
    sets = [{problem.text for problem in part} for part in (problems.train, problems.eval, problems.shots)]
    assert [len(problems.eval), len(problems.shots)] == [6, 2]
    assert len(problems.train) == 30
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(sets, 2))
    assert data.load() == problems
    assert load_config("tiny", [f"data={task}", *SMALL, "data.seed=1"]).data.load() != problems


@pytest.mark.parametrize("task", ["code", "symbolic"])
def test_more_than_there_are_is_said(task: str) -> None:
    data = load_config("tiny", [f"data={task}", "data.num_train=5000"]).data
    with pytest.raises(DataError, match=rf"the task '{task}' has \d+ different problems.*lower data\.num_train"):
        data.load()


def test_a_data_set_of_reasoning_gym_that_is_none_is_said() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match=r"data\.dataset='no_such' with data\.config={} cannot be made"):
        load_config("tiny", ["data=reasoning_gym", "data.dataset=no_such"]).data.load()
