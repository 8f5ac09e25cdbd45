"""A number game over several turns: guess, hear whether it is higher or lower, and guess again."""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from orchestration.data.generated import GeneratedTask
from orchestration.data.task import Judges, PromptLayout, register
from orchestration.environments.guessing import Guessing
from orchestration.types import Problem
from reward_service.types import RewardSpec

_LOWEST, _HIGHEST = 10, 97


@register
class Guess(GeneratedTask):
    """One of three numbers, found in two guesses: paid at the end. Who says the middle one first and then listens is
    always right."""

    name: ClassVar[str] = "guess"

    max_guesses: int = Field(2, ge=1, le=10, description="Guesses, each a turn.")
    num_train: int = Field(150, ge=1, description="Training problems.")
    num_eval: int = Field(30, ge=1, description="Held-out problems.")

    def make(self, count: int) -> list[Problem]:
        del count  # there are few enough to make all
        problems = [_problem(low, place) for low in range(_LOWEST, _HIGHEST + 1) for place in range(3)]
        random.Random(f"guess/{self.seed}").shuffle(problems)
        return problems

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction="Guess the number. You are told whether it is higher or lower.")

    def environment(self) -> Guessing:
        return Guessing(max_guesses=self.max_guesses)

    def rewards(self) -> tuple[RewardSpec, ...]:
        return (RewardSpec(name="environment"),)

    def judges(self) -> Judges:
        return Judges(strict=RewardSpec(name="environment"))


def _problem(low: int, place: int) -> Problem:
    """The secret is the number at a place, 0 to 2, of the three from `low`."""
    return Problem(
        problem_id=f"guess/{low}/{place}",
        question=f"The number is {low}, {low + 1} or {low + 2}.",
        reference={"final_answer": str(low + place)},
        category=("lowest", "middle", "highest")[place],
    )
