"""Arithmetic with numbers of many digits: more than a small model does in its head, and little with a tool."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from orchestration.data.answer_lines import AnswerLineTask
from orchestration.data.generated import GeneratedTask
from orchestration.data.problems import Problems, answer_line
from orchestration.data.task import PromptLayout, register
from orchestration.environments.tools.calculator import calculator
from orchestration.types import Problem
from reward_service.types import RewardSpec

_CALCULATOR = "calculator"


class _Form(NamedTuple):
    """A way to ask, and what is to be worked out; a, b and c are the numbers."""

    grade: int
    asks: str
    expression: str
    fits: Callable[[int, int, int], bool] = lambda a, b, c: True


_FORMS = (
    _Form(1, "What is {a} + {b}?", "{a} + {b}"),
    _Form(1, "What is {a} - {b}?", "{a} - {b}", lambda a, b, c: a > b),
    _Form(1, "What is {a} * {b}?", "{a} * {b}"),
    _Form(2, "Add {a} to {b}.", "{a} + {b}"),
    _Form(2, "Take {a} away from {b}.", "{b} - {a}", lambda a, b, c: b > a),
    _Form(2, "Multiply {a} by {b}.", "{a} * {b}"),
    _Form(3, "Add {a} to {b} and multiply the sum by {c}.", "({a} + {b}) * {c}"),
    _Form(3, "Multiply {a} by {b} and take {c} away.", "{a} * {b} - {c}"),
    _Form(3, "{a} boxes hold {b} nails each, and {c} nails are lost. How many are left?", "{a} * {b} - {c}"),
)


@register
class Calculator(GeneratedTask, AnswerLineTask):
    """Sums, differences and products of numbers of three to five digits, with the tool calculator at hand."""

    name: ClassVar[str] = "calculator"

    difficulty: tuple[Literal[1, 2, 3], ...] = Field(
        (1, 2), min_length=1, description="1 (as an expression), 2 (in words), 3 (two operations)."
    )
    digits: tuple[int, int] = Field((3, 5), description="Fewest and most digits of a number.")
    num_train: int = Field(600, ge=1, description="Training problems.")
    num_eval: int = Field(50, ge=1, description="Held-out problems.")
    num_shots: int = Field(2, ge=0, le=8, description="Worked examples in front of the question, the call shown.")
    tools: tuple[str, ...] = Field((_CALCULATOR,), description="What the model may call; []: it is on its own.")

    def check(self) -> None:
        fewest, most = self.digits
        if not 1 <= fewest <= most <= 12:
            raise ValueError(f"digits={list(self.digits)}: the fewest and the most, from 1 to 12")

    def make(self, count: int) -> list[Problem]:
        return [self._problem(number) for number in range(count)]

    def load(self) -> Problems:
        problems = super().load()
        if _CALCULATOR not in self.tools:
            return problems
        return replace(problems, shots=tuple(_with_the_call(shot) for shot in problems.shots))

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=f"Work it out. End with {answer_line('N')}.")

    def rewards(self) -> tuple[RewardSpec, ...]:
        """The right answer alone: paid for its form, small models learn the form and guess."""
        return (self._asked("gsm8k_correctness"),)

    def _problem(self, number: int) -> Problem:
        drawn = random.Random(f"calculator/{self.seed}/{number}")
        form = drawn.choice([form for form in _FORMS if form.grade in self.difficulty])
        while not form.fits(*(numbers := self._numbers(drawn))):
            pass
        named = dict(zip("abc", numbers, strict=True))
        expression = form.expression.format(**named)
        answer = calculator(expression)
        return Problem(
            problem_id=f"calculator/{number}",
            question=form.asks.format(**named),
            reference={"final_answer": answer},
            metadata={"expression": expression},
            solution=answer_line(answer),
            category=str(form.grade),
        )

    def _numbers(self, drawn: random.Random) -> tuple[int, int, int]:
        first, second, third = (drawn.randint(*self.digits) for _ in range(3))
        return tuple(drawn.randrange(10 ** (size - 1), 10**size) for size in (first, second, third))  # type: ignore[return-value]


def _with_the_call(shot: Problem) -> Problem:
    """A worked example as it goes with the tool: question, call, what the tool says, answer."""
    call = {"name": _CALCULATOR, "arguments": {"expression": shot.metadata["expression"]}}
    return replace(
        shot,
        question=(
            {"role": "user", "content": shot.text},
            {"role": "call", "content": json.dumps(call)},
            {"role": "tool", "name": _CALCULATOR, "content": str(shot.reference["final_answer"])},
        ),
    )
