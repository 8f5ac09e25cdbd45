"""A toy task for tests of the machinery: say the number that the question names."""

from __future__ import annotations

import random
from typing import ClassVar

from pydantic import Field

from orchestration.data.answer_lines import AnswerLineTask
from orchestration.data.problems import Problems, answer_line
from orchestration.data.task import register
from orchestration.errors import DataError
from orchestration.types import Problem

WORDINGS = (
    "Repeat the number {n}.",
    "Copy {n}.",
    "Say {n} again.",
    "Write down {n}.",
    "The number is {n}.",
    "Which number is {n}?",
)
MAX_SHOTS = 8


@register
class Copy(AnswerLineTask):
    """A toy task for tests of the machinery: repeat the number that the prompt names."""

    name: ClassVar[str] = "copy"

    num_train: int = Field(200, ge=1, description="Training problems.")
    num_eval: int = Field(50, ge=1, description="Held-out problems.")
    max_number: int = Field(99, ge=9, description="Largest number.")
    num_shots: int = Field(0, ge=0, le=MAX_SHOTS, description="Worked examples in front of the question.")
    seed: int = Field(0, ge=0, description="Seed of the generator.")

    def load(self) -> Problems:
        """The sets from all pairs of wording and number, each pair used at most once; category is the wording's index.

        Raises:
            DataError: there are fewer pairs than problems asked for.
        """
        pairs = [(wording, number) for wording in range(len(WORDINGS)) for number in range(self.max_number + 1)]
        needed = self.num_train + self.num_eval + MAX_SHOTS
        if needed > len(pairs):
            raise DataError(
                f"the copy task has {len(pairs)} different problems with data.max_number={self.max_number}, and "
                f"{needed} are needed; raise it or lower data.num_train"
            )
        random.Random(f"copy/{self.seed}").shuffle(pairs)
        shots, rest = pairs[:MAX_SHOTS], pairs[MAX_SHOTS:]
        return Problems(
            train=_problems(rest[self.num_eval :][: self.num_train], "train"),
            eval=_problems(rest[: self.num_eval], "eval"),
            shots=_problems(shots[: self.num_shots], "shot"),
        )


def _problems(pairs: list[tuple[int, int]], split: str) -> tuple[Problem, ...]:
    return tuple(
        Problem(
            problem_id=f"copy/{split}/{index}",
            question=WORDINGS[wording].format(n=number),
            reference={"final_answer": str(number)},
            solution=answer_line(str(number)),
            category=str(wording),
        )
        for index, (wording, number) in enumerate(pairs)
    )
