"""The small programs: every solution passes its tests in the real sandbox, and both wrong ones fail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.data.tasks.programs import PROGRAMS, as_problem
from reward_service.commands import score_one
from reward_service.sandbox.settings import SandboxSettings
from reward_service.settings import ServiceSettings
from reward_service.types import RewardItem, RewardScore, RewardSpec


def test_there_are_enough_and_all_are_whole() -> None:
    assert Counter(program.difficulty for program in PROGRAMS) == {1: 28, 2: 28, 3: 28}
    assert len({program.name for program in PROGRAMS}) == len({program.question for program in PROGRAMS}) == 84
    for program in PROGRAMS:
        assert len(program.calls) >= 3, program.name
        assert len({program.solution, *program.wrong}) == 3, program.name


def scored(solutions: Sequence[str], calls: Sequence[Mapping[str, Any]]) -> RewardScore:
    """All stand in one program, so that one sandbox runs them: what costs time is its start."""
    item = RewardItem(completion="\n".join(solutions), reference={"calls": calls})
    settings = ServiceSettings(sandbox=SandboxSettings(total_s=300, wall_s=60))
    return score_one([RewardSpec(name="code", params={"extract": "whole"})], item, settings).rewards["code"]


def test_solutions_pass_and_wrong_ones_fail_in_the_sandbox() -> None:
    calls = [
        {**call, "function": program.name} for program in PROGRAMS for call in as_problem(program).reference["calls"]
    ]
    assert scored([program.solution for program in PROGRAMS], calls).score == 1.0
    for which in (0, 1):
        solutions = [program.wrong[which] for program in PROGRAMS]
        names = [program.name for program in PROGRAMS]
        once = {"function": "passing", "args": [], "expected": []}
        assert scored([*solutions, PASSING.format(calls=calls, names=names)], [once]).score == 1.0


PASSING = """
def passing():
    def right(call):
        try:
            return globals()[call["function"]](*call["args"]) == call["expected"]
        except Exception:
            return False
    calls = {calls}
    return [name for name in {names} if all(right(call) for call in calls if call["function"] == name)]
"""


def test_a_task_as_it_is_scored() -> None:
    """Partial credit: nothing for prose, 0.1 each for compiling and running, the rest by tests."""
    program = next(program for program in PROGRAMS if program.name == "is_prime")
    problem = as_problem(program)
    completions = (problem.solution, f"```python\n{program.wrong[0]}```", "```python\nx = 1\n```", "It is prime.")
    scores = [
        score_one([RewardSpec(name="code")], RewardItem(completion=text, reference=problem.reference)).total
        for text in completions
    ]
    assert scores[0] == 1.0
    assert scores[1] is not None
    assert 0.2 < scores[1] < 0.5
    assert scores[2:] == [0.2, 0.0]
