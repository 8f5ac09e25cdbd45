"""A number game: guess, hear whether the number is higher or lower, guess again; paid at the end."""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestration.environments.environment import Step
from orchestration.types import Problem

_NUMBER = re.compile(r"\d+")


@dataclass(slots=True)
class Guessing:
    """The secret is the reference's `final_answer`; the last number of an action is the guess. 1 for finding it within
    `max_guesses`, else 0."""

    max_guesses: int = 2
    _secret: int = 0
    _num_guesses: int = 0

    async def reset(self, problem: Problem) -> None:
        self._secret, self._num_guesses = int(problem.reference["final_answer"]), 0

    async def step(self, action: str) -> Step:
        self._num_guesses += 1
        numbers = _NUMBER.findall(action)
        guess = int(numbers[-1]) if numbers else None
        if guess == self._secret:
            return Step(reward=1.0, done=True)
        if self._num_guesses >= self.max_guesses:
            return Step(reward=0.0, done=True)
        if guess is None:
            return Step("Say a number.")
        return Step("It is higher." if guess < self._secret else "It is lower.")

    async def close(self) -> None:
        """Holds nothing."""
