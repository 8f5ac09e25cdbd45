"""A number game over several turns: guess, hear whether it is higher or lower, and guess again."""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from orchestration.data.problems import Problems, split
from orchestration.data.task import Judges, PromptLayout, Task, register
from orchestration.environments.guessing import Guessing
from orchestration.errors import DataError
from orchestration.types import Problem
from reward_service.types import RewardSpec

_LOWEST, _HIGHEST = 10, 97


@register
class Guess(Task):
    """One of three numbers, found in two guesses: paid at the end. Who says the middle one first and then listens is
    always right."""

    name: ClassVar[str] = "guess"

    max_guesses: int = Field(2, ge=1, le=10, description="Guesses, each a turn.")
    num_train: int = Field(150, ge=1, description="Training problems.")
    num_eval: int = Field(30, ge=1, description="Held-out problems: a question with all three of its numbers.")
    seed: int = Field(0, ge=0, description="Seed of which are held out.")

    def load(self) -> Problems:
        lows = list(range(_LOWEST, _HIGHEST + 1))
        random.Random(f"guess/{self.seed}").shuffle(lows)
        problems = [_problem(low, place) for low in lows for place in range(3)]
        held_out, rest = problems[: self.num_eval], problems[-(-self.num_eval // 3) * 3 :]
        if self.num_train > len(rest):
            raise DataError(
                f"data.num_train={self.num_train} with data.num_eval={self.num_eval}: the task guess has "
                f"{len(problems)} problems; lower one of them"
            )
        return split(rest, held_out, num_eval=self.num_eval, num_train=self.num_train, shuffle=f"guess/{self.seed}")

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
