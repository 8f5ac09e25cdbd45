"""Small algebra whose answers are expressions: what is asked is drawn, what is right is decided by the value."""

from __future__ import annotations

from typing import ClassVar

from orchestration.data.generated import GeneratedTask
from orchestration.data.problems import answer_line
from orchestration.data.task import Judges, PromptLayout, register
from orchestration.types import Problem
from reward_service.types import ANSWER_PREFIX, RewardSpec

_REWARD = RewardSpec(name="symbolic")
_LARGEST = 9


@register
class Symbolic(GeneratedTask):
    """Expand a product of two linear factors; any expression that equals it is right."""

    name: ClassVar[str] = "symbolic"

    def make(self, count: int) -> list[Problem]:
        del count  # there are few enough to make all
        return [_problem(a, b) for a in range(1, _LARGEST + 1) for b in range(-_LARGEST, _LARGEST + 1) if b]

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=f"Work it out. End with {ANSWER_PREFIX} and the expression.")

    def rewards(self) -> tuple[RewardSpec, ...]:
        # A part of it for an answer line at all, so that the groups of a beginner are not all alike.
        line = {"pattern": rf"^{ANSWER_PREFIX} \S", "multiline": True}
        return _REWARD, RewardSpec(name="regex", weight=0.1, params=line), RewardSpec(name="repetition", weight=0.1)

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
