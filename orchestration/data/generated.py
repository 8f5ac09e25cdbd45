"""What the tasks share whose problems are made when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from pydantic import Field

from orchestration.data.problems import Problems, split
from orchestration.data.task import Task
from orchestration.errors import DataError
from orchestration.types import Problem


class GeneratedTask(Task):
    """A task that makes its problems; training, held-out and example problems are disjoint by question."""

    num_train: int = Field(100, ge=1, description="Training problems.")
    num_eval: int = Field(20, ge=1, description="Held-out problems.")
    num_shots: int = Field(0, ge=0, le=16, description="Worked examples in front of the question.")
    seed: int = Field(0, ge=0, description="Seed of what is drawn, and of the order.")

    @abstractmethod
    def make(self, count: int) -> Sequence[Problem]:
        """`count` problems, or all there are; equal questions count once."""

    def load(self) -> Problems:
        needed = self.num_train + self.num_eval + self.num_shots
        made = self.make(needed)
        different = len({problem.text for problem in made})
        if different < self.num_eval + self.num_shots + 1 or len(made) < needed:
            raise DataError(
                f"the task {self.kind!r} has {different} different problems with these settings, and {needed} are "
                f"asked for; lower data.num_train and data.num_eval"
            )
        return split(
            made,
            None,
            num_eval=self.num_eval,
            num_shots=self.num_shots,
            num_train=self.num_train,
            shuffle=f"{self.name}/{self.seed}",
        )
