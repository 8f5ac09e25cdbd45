"""Small functions to write, judged by unit tests in the reward service's sandbox."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar, NamedTuple

from pydantic import Field

from orchestration.data.generated import GeneratedTask
from orchestration.data.task import Judges, PromptLayout, register
from orchestration.types import Problem
from reward_service.types import RewardSpec

INSTRUCTION = "Write the Python function. Answer with one fenced python block and nothing else."
ALL_TESTS = RewardSpec(name="code", params={"compiles": 0, "runs": 0, "tests": 0, "all_tests": 1})
"""Right is what passes every test."""

_NUM_CALLS = 4


class _Form(NamedTuple):
    """One kind of function, with a number k in it."""

    name: str
    asks: str
    body: str
    value: Callable[[int, int], int]


_FORMS = (
    _Form("add", "the number x plus {k}", "x + {k}", lambda x, k: x + k),
    _Form("subtract", "the number x minus {k}", "x - {k}", lambda x, k: x - k),
    _Form("multiply", "the number x times {k}", "x * {k}", lambda x, k: x * k),
    _Form("modulo", "the remainder of x divided by {k}", "x % {k}", lambda x, k: x % k),
    _Form("at_least", "the larger of x and {k}", "max(x, {k})", max),
    _Form("at_most", "the smaller of x and {k}", "min(x, {k})", min),
)
_NUMBERS = range(2, 40)


@register
class Code(GeneratedTask):
    """Functions of one line, with unit tests as calls and their values."""

    name: ClassVar[str] = "code"

    num_train: int = Field(150, ge=1, description="Training problems.")
    num_shots: int = Field(1, ge=0, le=8, description="Worked examples in front of the question.")

    def make(self, count: int) -> list[Problem]:
        del count  # there are few enough to make all
        return [self._problem(form, k) for form in _FORMS for k in _NUMBERS]

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=INSTRUCTION)

    def rewards(self) -> tuple[RewardSpec, ...]:
        return (RewardSpec(name="code"),)

    def judges(self) -> Judges:
        return Judges(strict=ALL_TESTS)

    def _problem(self, form: _Form, k: int) -> Problem:
        function = f"{form.name}_{k}"
        drawn = random.Random(f"code/{self.seed}/{function}").sample(range(-50, 100), _NUM_CALLS)
        return Problem(
            problem_id=f"code/{function}",
            question=f"Write a function {function}(x) that returns {form.asks.format(k=k)}.",
            reference={
                "entry_point": function,
                "calls": [{"args": [x], "expected": form.value(x, k)} for x in drawn],
            },
            solution=f"```python\ndef {function}(x):\n    return {form.body.format(k=k)}\n```",
            category=form.name,
        )
