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
    then: str
    """How it is asked of what came before."""
    body: str
    value: Callable[[int, int], int]


_FORMS = (
    _Form("add", "the number x plus {k}", "plus {k}", "{x} + {k}", lambda x, k: x + k),
    _Form("subtract", "the number x minus {k}", "minus {k}", "{x} - {k}", lambda x, k: x - k),
    _Form("multiply", "the number x times {k}", "times {k}", "{x} * {k}", lambda x, k: x * k),
    _Form("modulo", "the remainder of x divided by {k}", "modulo {k}", "{x} % {k}", lambda x, k: x % k),
    _Form("at_least", "the larger of x and {k}", "or {k} if that is more", "max({x}, {k})", max),
    _Form("at_most", "the smaller of x and {k}", "or {k} if that is less", "min({x}, {k})", min),
)
_NUMBERS = range(2, 40)
_EACH = 8
"""Functions of two operations, of each pair of forms."""


@register
class Code(GeneratedTask):
    """Functions of one line, with unit tests as calls and their values."""

    name: ClassVar[str] = "code"

    num_train: int = Field(150, ge=1, description="Training problems.")
    num_shots: int = Field(1, ge=0, le=8, description="Worked examples in front of the question.")

    def make(self, count: int) -> list[Problem]:
        del count  # there are few enough to make all
        return functions_of_one_line(self.seed)

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=INSTRUCTION)

    def rewards(self) -> tuple[RewardSpec, ...]:
        return (RewardSpec(name="code"),)

    def judges(self) -> Judges:
        return Judges(strict=ALL_TESTS)


def functions_of_one_line(seed: int) -> list[Problem]:
    """One for each form and number; the seed draws what they are tested with."""
    return [_problem(form, k, seed) for form in _FORMS for k in _NUMBERS]


def _problem(form: _Form, k: int, seed: int) -> Problem:
    function = f"{form.name}_{k}"
    drawn = random.Random(f"code/{seed}/{function}").sample(range(-50, 100), _NUM_CALLS)
    return Problem(
        problem_id=f"code/{function}",
        question=f"Write a function {function}(x) that returns {form.asks.format(k=k)}.",
        reference={
            "entry_point": function,
            "calls": [{"args": [x], "expected": form.value(x, k)} for x in drawn],
        },
        solution=f"```python\ndef {function}(x):\n    return {form.body.format(x='x', k=k)}\n```",
        category=form.name,
    )


def functions_of_two_operations(seed: int) -> list[Problem]:
    """One after the other, some of each pair: brackets matter."""
    drawn = random.Random(f"two operations/{seed}")
    return [
        _two(first, second, drawn) for first in _FORMS for second in _FORMS if first is not second for _ in range(_EACH)
    ]


def _two(first: _Form, second: _Form, drawn: random.Random) -> Problem:
    k, m = drawn.sample(_NUMBERS, 2)
    function = f"{first.name}_{k}_{second.name}_{m}"
    inner = first.body.format(x="x", k=k)
    is_call = ")" in second.body or ")" in inner
    body = second.body.format(x=inner if is_call else f"({inner})", k=m)
    calls = [
        {"args": [x], "expected": second.value(first.value(x, k), m)} for x in drawn.sample(range(-50, 100), _NUM_CALLS)
    ]
    return Problem(
        problem_id=f"code/{function}",
        question=f"Write a function {function}(x) that returns {first.asks.format(k=k)}, {second.then.format(k=m)}.",
        reference={"entry_point": function, "calls": calls},
        solution=f"```python\ndef {function}(x):\n    return {body}\n```",
        category=second.name,
    )
