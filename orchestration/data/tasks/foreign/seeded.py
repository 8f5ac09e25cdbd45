"""What the tasks share whose problems are beginnings of somebody's world."""

from __future__ import annotations

from pydantic import Field

from orchestration.data.generated import GeneratedTask
from orchestration.data.problems import Problems
from orchestration.data.task import Judges, PromptLayout
from orchestration.types import Problem
from reward_service.types import RewardSpec


class SeededTask(GeneratedTask):
    """A problem is a seed with which the world begins; paid is what the world pays."""

    instruction: str = Field("", description="What is to be done, in front of what the environment shows.")
    num_train: int = Field(200, ge=1, description="Beginnings that are trained on.")
    num_eval: int = Field(20, ge=1, description="Held-out beginnings.")

    def load(self) -> Problems:
        self.environment()  # what is missing is said now, not episode by episode
        return super().load()

    def make(self, count: int) -> list[Problem]:
        return [self._problem(seed) for seed in range(count)]

    def layout(self) -> PromptLayout:
        return PromptLayout()

    def rewards(self) -> tuple[RewardSpec, ...]:
        return (RewardSpec(name="environment"),)

    def judges(self) -> Judges:
        return Judges(strict=RewardSpec(name="environment"))

    def _problem(self, seed: int) -> Problem:
        return Problem(
            problem_id=f"{self.kind}/{seed}",
            question=f"{self.instruction} Game {seed}.".strip(),
            reference={"seed": seed + 1_000_000 * self.seed},
        )
