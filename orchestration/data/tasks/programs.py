"""Small programs to write in three difficulties, judged by unit tests in the reward service's sandbox."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from orchestration.data.generated import GeneratedTask
from orchestration.data.programs.easy import EASY
from orchestration.data.programs.hard import HARD
from orchestration.data.programs.medium import MEDIUM
from orchestration.data.programs.program import Program
from orchestration.data.task import Judges, PromptLayout, register
from orchestration.data.tasks.coding import ALL_TESTS, INSTRUCTION
from orchestration.types import Problem
from reward_service.types import RewardSpec

PROGRAMS: tuple[Program, ...] = (*EASY, *MEDIUM, *HARD)


@register
class Programs(GeneratedTask):
    """84 functions with tests, 28 of each difficulty; some of the reward is for compiling and running."""

    name: ClassVar[str] = "programs"

    difficulty: tuple[Literal[1, 2, 3], ...] = Field(
        (1, 2, 3), min_length=1, description="1 (one expression), 2 (a loop or a few cases), 3 (an algorithm)."
    )
    num_train: int = Field(60, ge=1, description="Training problems.")
    num_shots: int = Field(1, ge=0, le=8, description="Worked examples in front of the question.")

    def make(self, count: int) -> list[Problem]:
        del count  # there are few enough to take all
        return [as_problem(program) for program in PROGRAMS if program.difficulty in self.difficulty]

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=INSTRUCTION)

    def rewards(self) -> tuple[RewardSpec, ...]:
        return (RewardSpec(name="code"),)

    def judges(self) -> Judges:
        return Judges(strict=ALL_TESTS)


def as_problem(program: Program) -> Problem:
    """The task as a problem; its category is its difficulty."""
    calls = [{"args": list(arguments), "expected": value} for arguments, value in program.calls]
    return Problem(
        problem_id=f"programs/{program.name}",
        question=program.question,
        reference={"entry_point": program.name, "calls": calls},
        solution=f"```python\n{program.solution}```",
        category=str(program.difficulty),
        metadata={"difficulty": program.difficulty},
    )
