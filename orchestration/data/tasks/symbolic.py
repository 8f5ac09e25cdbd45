"""Small algebra whose answers are expressions: what is asked is drawn, what is right is decided by the value.

An answer to be expanded or simplified must also have the form: what is asked is as much worth as the answer is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from orchestration.data.generated import GeneratedTask
from orchestration.data.problems import answer_line, question_key
from orchestration.data.task import Judges, PromptLayout, register
from orchestration.types import Problem
from reward_service.types import ANSWER_PREFIX, RewardSpec

Topic = Literal["simplify", "expand", "solve", "derivative"]
Difficulty = Literal[1, 2, 3]

_REWARD = RewardSpec(name="symbolic")
_FRUITLESS_DRAWS = 500
"""So many draws in a row without a new question mean that there is none left."""


class _Item(NamedTuple):
    question: str
    answer: str
    form: str = "any"


@register
class Symbolic(GeneratedTask):
    """Simplify, expand, solve and differentiate; any expression that equals the answer is right, in the form asked."""

    name: ClassVar[str] = "symbolic"

    topics: tuple[Topic, ...] = Field(
        ("simplify", "expand", "solve", "derivative"), min_length=1, description="What is asked, in turn."
    )
    difficulty: tuple[Difficulty, ...] = Field(
        (1,), min_length=1, description="1 (one step) to 3 (brackets, two unknown sides, products and chains)."
    )

    def make(self, count: int) -> list[Problem]:
        rng = random.Random(f"symbolic/{self.seed}")
        kinds = [(topic, grade) for grade in self.difficulty for topic in self.topics]
        found: dict[str, Problem] = {}
        while kinds and len(found) < count:
            for topic, grade in tuple(kinds)[: count - len(found)]:
                item = _new_item(_MAKERS[topic][grade - 1], rng, found)
                if item is None:
                    kinds.remove((topic, grade))  # all of these are there
                else:
                    found[question_key(item.question)] = _problem(item, topic, grade, len(found))
        return list(found.values())

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=f"Work it out. End with {ANSWER_PREFIX} and the expression.")

    def rewards(self) -> tuple[RewardSpec, ...]:
        # A part of it for an answer line at all, so that the groups of a beginner are not all alike.
        line = {"pattern": rf"^{ANSWER_PREFIX} \S", "multiline": True, "mode": "search"}
        return _REWARD, RewardSpec(name="regex", weight=0.1, params=line), RewardSpec(name="repetition", weight=0.1)

    def judges(self) -> Judges:
        return Judges(strict=_REWARD, lenient=RewardSpec(name="math", params={"answer_in": "anywhere"}))


def _new_item(make: Callable[[random.Random], _Item], rng: random.Random, found: Mapping[str, Problem]) -> _Item | None:
    items = (make(rng) for _ in range(_FRUITLESS_DRAWS))
    return next((item for item in items if question_key(item.question) not in found), None)


def _problem(item: _Item, topic: str, grade: int, number: int) -> Problem:
    return Problem(
        problem_id=f"symbolic/{topic}/{grade}/{number}",
        question=item.question,
        reference={"final_answer": item.answer, "form": item.form},
        solution=answer_line(item.answer),
        category=topic,
        metadata={"difficulty": grade},
    )


def _poly(terms: Mapping[int, int]) -> str:
    """`{2: 3, 1: -1, 0: 4}` as `3x^2 - x + 4`."""
    text = ""
    for power in sorted(terms, reverse=True):
        number = terms[power]
        if number:
            variable = "" if power == 0 else "x" if power == 1 else f"x^{power}"
            size = "" if variable and abs(number) == 1 else str(abs(number))
            sign = ("-" if number < 0 else "") if not text else (" - " if number < 0 else " + ")
            text += f"{sign}{size}{variable}"
    return text or "0"


def _times(first: Mapping[int, int], second: Mapping[int, int]) -> dict[int, int]:
    product: dict[int, int] = {}
    for power, number in first.items():
        for other, factor in second.items():
            product[power + other] = product.get(power + other, 0) + number * factor
    return product


def _some(rng: random.Random, low: int = -9, high: int = 9) -> int:
    """A number that is neither 0 nor 1 nor -1."""
    return rng.choice([number for number in range(low, high + 1) if abs(number) > 1])


def _simplify_like(rng: random.Random) -> _Item:
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    return _Item(f"Simplify {a}x + {b}x.", f"{a + b}x", "expanded")


def _simplify_mixed(rng: random.Random) -> _Item:
    a, b, c, d = (_some(rng) for _ in range(4))
    sums = {1: a + c, 0: b + d}
    return _Item(f"Simplify {_poly({1: a, 0: b})}{_tail({1: c, 0: d})}.", _poly(sums), "expanded")


def _simplify_brackets(rng: random.Random) -> _Item:
    a, b, c, d = rng.randint(2, 9), _some(rng), rng.randint(2, 9), _some(rng)
    asked = f"{a}({_poly({1: 1, 0: b})}) - {c}({_poly({1: 1, 0: d})})"
    return _Item(f"Simplify {asked}.", _poly({1: a - c, 0: a * b - c * d}), "expanded")


def _tail(terms: Mapping[int, int]) -> str:
    """The same to be put behind other terms: ` - 3x + 4`."""
    text = _poly(terms)
    return f" - {text[1:]}" if text.startswith("-") else f" + {text}"


def _expanding(first: dict[int, int], second: dict[int, int]) -> _Item:
    return _Item(f"Expand ({_poly(first)})({_poly(second)}).", _poly(_times(first, second)), "expanded")


def _expand_simple(rng: random.Random) -> _Item:
    return _expanding({1: 1, 0: rng.randint(1, 9)}, {1: 1, 0: _some(rng)})


def _expand_factors(rng: random.Random) -> _Item:
    return _expanding({1: rng.randint(2, 9), 0: _some(rng)}, {1: rng.randint(2, 9), 0: _some(rng)})


def _expand_quadratic(rng: random.Random) -> _Item:
    return _expanding({1: rng.randint(1, 5), 0: _some(rng)}, {2: 1, 1: _some(rng), 0: _some(rng)})


def _solving(left: Mapping[int, int], right: Mapping[int, int], x: int) -> _Item:
    return _Item(f"Solve {_poly(left)} = {_poly(right)} for x.", str(x))


def _solve_one_step(rng: random.Random) -> _Item:
    x, b = rng.randint(1, 12), _some(rng)
    return _solving({1: 1, 0: b}, {0: x + b}, x)


def _solve_two_steps(rng: random.Random) -> _Item:
    x, a, b = rng.randint(-12, 12), rng.randint(2, 9), _some(rng)
    return _solving({1: a, 0: b}, {0: a * x + b}, x)


def _solve_both_sides(rng: random.Random) -> _Item:
    x, a, b, c = rng.randint(-12, 12), rng.randint(6, 12), _some(rng), rng.randint(2, 5)
    return _solving({1: a, 0: b}, {1: c, 0: (a - c) * x + b}, x)


def _derived(terms: Mapping[int, int]) -> _Item:
    slopes = {power - 1: power * number for power, number in terms.items() if power}
    return _Item(f"Differentiate {_poly(terms)} with respect to x.", _poly(slopes), "expanded")


def _derivative_power(rng: random.Random) -> _Item:
    return _derived({rng.randint(2, 9): rng.randint(2, 12)})


def _derivative_polynomial(rng: random.Random) -> _Item:
    return _derived({3: _some(rng), 2: _some(rng), 1: _some(rng), 0: _some(rng)})


def _derivative_product(rng: random.Random) -> _Item:
    a, b, n = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 5)
    asked, answer = rng.choice(
        [
            (f"{a}sin({b}x)", f"{a * b}cos({b}x)"),
            (f"{a}cos({b}x)", f"-{a * b}sin({b}x)"),
            (f"x^{n}*sin({b}x)", f"{n}{_poly({n - 1: 1})}*sin({b}x) + {b}x^{n}*cos({b}x)"),
            (f"({a}x + {b})^{n}", f"{a * n}({a}x + {b}){f'^{n - 1}' if n > 2 else ''}"),
        ]
    )
    return _Item(f"Differentiate {asked} with respect to x.", answer)


_MAKERS: Mapping[Topic, tuple[Callable[[random.Random], _Item], ...]] = {
    "simplify": (_simplify_like, _simplify_mixed, _simplify_brackets),
    "expand": (_expand_simple, _expand_factors, _expand_quadratic),
    "solve": (_solve_one_step, _solve_two_steps, _solve_both_sides),
    "derivative": (_derivative_power, _derivative_polynomial, _derivative_product),
}
