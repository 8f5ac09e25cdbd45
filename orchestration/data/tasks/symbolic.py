"""Small algebra whose answers are expressions: what is asked is drawn, what is right is decided by the value."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from orchestration.data.problems import Problems, answer_line, split
from orchestration.data.task import Judges, PromptLayout, Task, register
from orchestration.errors import DataError
from orchestration.types import Problem
from reward_service.types import ANSWER_PREFIX, RewardSpec

_REWARD = RewardSpec(name="symbolic")
_LARGEST = 9


@register
class Symbolic(Task):
    """Expand a product of two linear factors; any expression that equals it is right."""

    name: ClassVar[str] = "symbolic"

    num_train: int = Field(100, ge=1, description="Training problems.")
    num_eval: int = Field(20, ge=1, description="Held-out problems.")
    num_shots: int = Field(0, ge=0, le=8, description="Worked examples in front of the question.")
    seed: int = Field(0, ge=0, description="Seed of the order.")

    def load(self) -> Problems:
        pairs = [(a, b) for a in range(1, _LARGEST + 1) for b in range(-_LARGEST, _LARGEST + 1) if b]
        needed = self.num_train + self.num_eval + self.num_shots
        if needed > len(pairs):
            raise DataError(f"there are {len(pairs)} such problems, and {needed} are asked for; lower data.num_train")
        return split(
            [_problem(a, b) for a, b in pairs],
            None,
            num_eval=self.num_eval,
            num_shots=self.num_shots,
            num_train=self.num_train,
            shuffle=f"symbolic/{self.seed}",
        )

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=f"Work it out. End with {ANSWER_PREFIX} and the expression.")

    def rewards(self) -> tuple[RewardSpec, ...]:
        # A part of it for saying anything at all of the right form, so that groups of a beginner are not all alike.
        return _REWARD, RewardSpec(name="gsm8k_format", weight=0.1), RewardSpec(name="repetition", weight=0.1)

    def judges(self) -> Judges:
        return Judges(strict=_REWARD)


def _problem(a: int, b: int) -> Problem:
    product = f"x^2 {_signed(a + b, 'x')} {_signed(a * b)}".replace("  ", " ").strip()
    return Problem(
        problem_id=f"symbolic/{a}/{b}",
        question=f"Expand (x + {a})(x {_signed(b)}).",
        reference={"final_answer": product},
        solution=answer_line(product),
        category="expand",
    )


def _signed(number: int, variable: str = "") -> str:
    """`+ 3x`, `- 2`, or nothing for 0."""
    if not number:
        return ""
    size = "" if variable and abs(number) == 1 else str(abs(number))
    return f"{'+' if number > 0 else '-'} {size}{variable}"
