"""A task whose environment does as it is told: a module that actors of a test import."""

from __future__ import annotations

import asyncio
import time
from typing import ClassVar

from orchestration.data.generated import GeneratedTask
from orchestration.data.task import PromptLayout
from orchestration.environments.environment import Step
from orchestration.types import Problem
from reward_service.types import RewardSpec

BLOCKS_S = 9.0


class Obedient:
    """`wait` is answered after a second, `block` holds the whole process; two answers, and it is over."""

    def __init__(self) -> None:
        self._heard = 0

    async def reset(self, problem: Problem) -> None:
        self._heard = 0

    async def step(self, action: str) -> Step:
        self._heard += 1
        if action == "block":
            time.sleep(BLOCKS_S)  # noqa: ASYNC251  # what is not to be done
        if action == "wait":
            await asyncio.sleep(1)
        return Step("Go on.", reward=1.0, done=self._heard == 2)

    async def close(self) -> None:
        """Holds nothing."""


class Slow(GeneratedTask):
    """One problem."""

    name: ClassVar[str] = "slow"
    num_train: int = 1
    num_eval: int = 1

    def make(self, count: int) -> list[Problem]:
        return [Problem(problem_id=f"p{n}", question=f"Question {n}.", reference={}) for n in range(count)]

    def layout(self) -> PromptLayout:
        return PromptLayout()

    def environment(self) -> Obedient:
        return Obedient()

    def rewards(self) -> tuple[RewardSpec, ...]:
        return (RewardSpec(name="environment"),)
