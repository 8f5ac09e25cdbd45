"""Tasks that make their problems: disjoint sets, the same for the same seed, and too many asked for."""

from __future__ import annotations

import itertools

import pytest

from orchestration.data.tasks.symbolic import Symbolic
from orchestration.errors import ConfigError, DataError
from orchestration.settings.config import load_config
from reward_service.commands import score_one
from reward_service.types import RewardItem, RewardSpec

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


@pytest.mark.parametrize("grade", [1, 2, 3])
@pytest.mark.parametrize("topic", ["simplify", "expand", "solve", "derivative"])
def test_algebra_is_right_by_both_verifiers_and_a_question_is_not_its_answer(topic: str, grade: int) -> None:
    problems = Symbolic(topics=(topic,), difficulty=(grade,)).make(12)  # type: ignore[arg-type]
    assert len({problem.text for problem in problems}) == 12
    for problem in problems:
        asked = problem.text.rstrip(".").partition(" ")[2].removesuffix(" with respect to x")
        for completion, right in ((problem.solution, 1), (f"{problem.solution} + 1", 0)):
            item = RewardItem(completion=completion, reference=problem.reference)
            result = score_one([RewardSpec(name="symbolic"), RewardSpec(name="math")], item)
            assert {name: scored.score for name, scored in result.rewards.items()} == {"symbolic": right, "math": right}
        line = next(spec for spec in Symbolic().rewards() if spec.name == "regex")
        assert score_one([line], RewardItem(completion=problem.solution, reference=problem.reference)).total == 0.1
        if topic != "solve":
            item = RewardItem(completion=f"#### The final answer is {asked}", reference=problem.reference)
            assert score_one([RewardSpec(name="symbolic")], item).total == 0, asked
