"""Numbers in words, amounts in units, residues and sums: each is read back, and is wrong with another last digit."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_service.registry import BUILTIN_REWARDS

MATH: Final = BUILTIN_REWARDS["math"]
EXAMPLES: Final = 20  # of each form

ONES: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS: Final = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def score(answer: str, reference: Any) -> float | None:
    return MATH.score(f"so \\boxed{{{answer}}}", {"final_answer": reference}, MATH.params()).score


def in_words(value: int, joint: str) -> str:
    for size, name in ((10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if value >= size:
            rest = value % size
            behind = f"{joint if rest < 100 else ' '}{in_words(rest, joint)}" if rest else ""
            return f"{in_words(value // size, joint)} {name}{behind}"
    if value < 20:
        return ONES[value]
    return TENS[value // 10 - 2] + (f"-{ONES[value % 10]}" if value % 10 else "")


@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.parametrize("joint", [" ", " and "])
@given(value=st.integers(0, 10**9 - 2))
def test_numbers_in_words_are_read_back(joint: str, value: int) -> None:
    assert score(in_words(value, joint), str(value)) == 1.0
    assert score(str(value), in_words(value, joint)) == 1.0
    assert score(f"minus {in_words(value + 1, joint)}", str(-value - 1)) == 1.0
    assert score(in_words(value + 1, joint), str(value)) == 0.0


# the larger unit, the smaller one, and how many of it make one
AMOUNTS: Final = (
    ("hour", "minute", 60),
    ("minute", "second", 60),
    ("day", "hour", 24),
    ("week", "day", 7),
    ("ft", "inch", 12),
    ("yard", "ft", 3),
    ("lb", "oz", 16),
    ("m", "cm", 100),
    ("km", "m", 1000),
    ("kg", "g", 1000),
    ("L", "mL", 1000),
    ("dollar", "cent", 100),
)


@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.parametrize(("larger", "smaller", "size"), AMOUNTS)
@given(value=st.integers(1, 5000))
def test_amounts_are_read_back_in_one_unit_and_in_two(larger: str, smaller: str, size: int, value: int) -> None:
    reference = rf"{value}\text{{ {smaller}}}"
    for count, score_due in ((value, 1.0), (value + 1, 0.0)):
        whole, rest = divmod(count, size)
        assert score(rf"{whole}\text{{ {larger} }}{rest}\text{{ {smaller}}}", reference) == score_due
        assert score(rf"{whole}\text{{ {larger} and }}{rest}\text{{ {smaller}}}", reference) == score_due
        assert score(rf"\frac{{{count}}}{{{size}}}\text{{ {larger}}}", reference) == score_due
        assert score(reference, rf"{whole}\text{{ {larger} }}{rest}\text{{ {smaller}}}") == score_due
    assert score(rf"{value}\text{{ {larger}}}", reference) == 0.0


@settings(max_examples=EXAMPLES, deadline=None)
@given(modulus=st.integers(2, 999), value=st.integers(-(10**6), 10**6))
def test_residues_are_read_back(modulus: int, value: int) -> None:
    reference = rf"x \equiv {value % modulus} \pmod{{{modulus}}}"
    assert score(rf"x \equiv {value} \pmod {{{modulus}}}", reference) == 1.0
    assert score(rf"{value} \pmod{{{modulus}}}", reference) == 1.0
    assert score(rf"x \equiv {value + 1} \pmod{{{modulus}}}", reference) == 0.0
    assert score(rf"x \equiv {value % modulus} \pmod{{{modulus + 1}}}", reference) == 0.0


@settings(max_examples=EXAMPLES, deadline=None)
@given(first=st.integers(1, 9), number=st.integers(0, 30), power=st.integers(1, 3))
def test_sums_and_integrals_are_worked_out(first: int, number: int, power: int) -> None:
    last = first + number
    added = sum(count**power for count in range(first, last + 1))
    area = Fraction((last + 1) ** (power + 1) - first ** (power + 1), power + 1)
    for value, text in (
        (added, rf"\sum_{{k={first}}}^{{{last}}} k^{power}"),
        (area, rf"\int_{{{first}}}^{{{last + 1}}} x^{power}\,dx"),
    ):
        assert score(text, str(value)) == 1.0
        assert score(str(value), text) == 1.0
        assert score(text, str(value + 1)) == 0.0


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_multifactorials(step: int) -> None:
    for value in range(1, 15):
        product = 1
        for factor in range(value, 0, -step):
            product *= factor
        assert score(f"{value}{'!' * step}", str(product)) == 1.0
        assert score(f"{value}{'!' * step}", str(product + 1)) == 0.0
