"""The data sets of the package `reasoning-gym`, scored by its own verifiers."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from pydantic import Field

from orchestration.data.generated import GeneratedTask
from orchestration.data.task import Judges, PromptLayout, register
from orchestration.errors import ConfigError
from orchestration.extras import require
from orchestration.types import Problem
from reward_service.types import RewardSpec

_INSTRUCTION = "Solve the problem. Give the final answer, and nothing else, between <answer> and </answer>."
_REWARD = RewardSpec(name="reasoning_gym", params={"answer_in": "tags"})


@register
class ReasoningGym(GeneratedTask):
    """Any data set of reasoning-gym by its name; the package itself makes the problems and verifies the answers."""

    name: ClassVar[str] = "reasoning_gym"
    named_by: ClassVar[str] = "dataset"

    dataset: str = Field("basic_arithmetic", description="The data set's name, such as `countdown` or `sudoku`.")
    config: dict[str, Any] = Field(default_factory=dict, description="Its own settings, such as {min_digits: 1}.")
    num_train: int = Field(1000, ge=1, description="Training problems.")
    num_eval: int = Field(100, ge=1, description="Held-out problems.")

    def make(self, count: int) -> list[Problem]:
        return [self._problem(index, entry) for index, entry in enumerate(self._entries(count))]

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=_INSTRUCTION)

    def rewards(self) -> tuple[RewardSpec, ...]:
        return (_REWARD,)

    def judges(self) -> Judges:
        return Judges(strict=_REWARD)

    def _entries(self, count: int) -> list[dict[str, Any]]:
        require("reasoning_gym", by="data.kind=reasoning_gym", extra="reasoning-gym", package="reasoning-gym")
        import reasoning_gym

        try:
            made = reasoning_gym.create_dataset(self.dataset, size=count, seed=self.seed, **self.config)
            # What the verifiers read comes back from the service as JSON: here too, so that a run sees the same.
            return [json.loads(json.dumps(made[index])) for index in range(count)]
        except Exception as error:  # generators of many authors
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"data.dataset={self.dataset!r} with data.config={self.config} cannot be made: {reason}"
            ) from error

    def _problem(self, index: int, entry: dict[str, Any]) -> Problem:
        answer = entry.get("answer")
        return Problem(
            problem_id=f"reasoning_gym/{self.dataset}/{index}",
            question=entry["question"],
            reference={"dataset": self.dataset, "entry": entry},
            solution="" if answer is None else f"<answer>{answer}</answer>",
            category=self.dataset,
        )
