"""Mathematical answers: each form of a number is read back, and is wrong with another last digit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_service.registry import BUILTIN_REWARDS
from reward_service.rewards.base import NotScorableError
from reward_service.text.expressions import ExpressionError
from reward_service.text.latex.structure import read_answer
from reward_service.text.latex.surface import surface

MATH: Final = BUILTIN_REWARDS["math"]
EXAMPLES: Final = 25  # of each form


def score(answer: str, reference: Any) -> float | None:
    return MATH.score(f"so \\boxed{{{answer}}}", {"final_answer": reference}, MATH.params()).score


def grouped(value: int, separator: str) -> str:
    return f"{value:,}".replace(",", separator)


def based(value: int, base: int) -> str:
    digits = ""
    while value:
        value, digit = divmod(value, base)
        digits = "0123456789ABCDEF"[digit] + digits
    return digits or "0"


def scientific(value: int, form: str) -> str:
    mantissa, exponent = f"{Decimal(value):E}".split("E")
    return form.format(mantissa=mantissa, exponent=int(exponent))


INTEGERS: Final[dict[str, Callable[[int], str]]] = {
    "plain": str,
    "plus": "{:+}".format,
    "commas": "{:,}".format,
    "braced commas": lambda value: grouped(value, "{,}"),
    "thin spaces": lambda value: grouped(value, r"\,"),
    "commas and negative spaces": lambda value: grouped(value, r",\!"),
    "blanks": lambda value: grouped(value, " "),
    "ties": lambda value: grouped(value, "~"),
    "no-break spaces": lambda value: grouped(value, "\u202f"),
    "apostrophes": lambda value: grouped(value, "'"),
    "decimal": "{}.00".format,
    "quotient": lambda value: f"{3 * value}/3",
    "fraction": lambda value: rf"\frac{{{7 * value}}}{{7}}",
    "dfraction": lambda value: rf"\dfrac{{{2 * value}}}{{2}}",
    "e": lambda value: scientific(value, "{mantissa}e{exponent}"),
    "times": lambda value: scientific(value, r"{mantissa} \times 10^{{{exponent}}}"),
    "cdot": lambda value: scientific(value, r"{mantissa}\cdot 10^{exponent}"),
    "stars": lambda value: scientific(value, "{mantissa}*10**{exponent}"),
    "unit": r"{}\text{{ cm}}".format,
    "bare unit": "{} kg".format,
    "currency": r"\${}".format,
    "percent": r"{}\%".format,
    "degrees": r"{}^\circ".format,
    "dollars": "${}$".format,
    "left right": r"\left({}\right)".format,
    "equation": "x = {}".format,
    "label": r"\text{{Area}} = {}".format,
    "text": r"\text{{{}}}".format,
    "bold": r"\mathbf{{{}}}".format,
    "full stop": "{}.".format,
    "set": r"\{{{}\}}".format,
}


@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.parametrize("form", INTEGERS)
@given(value=st.integers(-(10**12), 10**12).filter(lambda value: abs(value) > 1))
def test_integers_are_read_back_in_every_form(form: str, value: int) -> None:
    write = INTEGERS[form]
    assert score(write(value), str(value)) == 1.0
    assert score(str(value), write(value)) == 1.0
    assert score(write(value + 1), str(value)) == 0.0
    assert score(write(-value), str(value)) == 0.0


@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.parametrize("form", ["{}", "{:,}", "{:E}", "${}$", r"{}\text{{ m}}", "x={}"])
@given(value=st.decimals(-(10**9), 10**9, places=4))
def test_decimals_are_read_back(form: str, value: Decimal) -> None:
    last = Decimal("0.0001")
    assert score(form.format(value), str(value)) == 1.0
    assert score(form.format(value), float(value)) == 1.0
    assert score(form.format(value + last), str(value)) == 0.0


@settings(max_examples=EXAMPLES, deadline=None)
@given(value=st.integers(10**6, 10**12), places=st.integers(0, 99))
def test_european_decimals_are_read_back(value: int, places: int) -> None:
    assert score(f"{grouped(value, '.')},{places:02}", f"{value}.{places:02}") == 1.0
    assert score(f"{grouped(value, '.')},{(places + 1) % 100:02}", f"{value}.{places:02}") == 0.0


FRACTIONS: Final[dict[str, Callable[[Fraction], str]]] = {
    "slash": str,
    "frac": lambda value: rf"\frac{{{value.numerator}}}{{{value.denominator}}}",
    "tfrac": lambda value: rf"\tfrac{{{value.numerator}}}{{{value.denominator}}}",
    "minus before": lambda value: rf"-\frac{{{-value.numerator}}}{{{value.denominator}}}",
    "power": lambda value: rf"{value.numerator} \cdot {value.denominator}^{{-1}}",
    "mixed": lambda value: mixed(value, r"{}\frac{{{}}}{{{}}}"),
    "mixed in one line": lambda value: mixed(value, "{} {}/{}"),
}


def mixed(value: Fraction, form: str) -> str:
    whole, rest = divmod(abs(value.numerator), value.denominator)
    sign = "-" if value < 0 else ""
    if not whole or not rest:
        return str(value)
    return sign + form.format(whole, rest, value.denominator)


@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.parametrize("form", FRACTIONS)
@given(value=st.fractions(-1000, 1000, max_denominator=999).filter(bool))
def test_fractions_are_read_back(form: str, value: Fraction) -> None:
    write = FRACTIONS[form]
    other = Fraction(value.numerator + value.denominator, value.denominator)
    assert score(write(value), str(value)) == 1.0
    assert score(str(value), write(value)) == 1.0
    assert score(write(other), str(value)) == 0.0


@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.parametrize("form", [r"{}.{}\overline{{{}}}", r"{}.{}\bar{{{}}}", "{}.{}({})"])
@given(whole=st.integers(0, 99), fixed=st.integers(0, 99), period=st.integers(1, 998))
def test_repeating_decimals_are_read_back(form: str, whole: int, fixed: int, period: int) -> None:
    value = Fraction(whole) + Fraction(fixed, 100) + Fraction(period, 99900)
    assert score(form.format(whole, f"{fixed:02}", f"{period:03}"), str(value)) == 1.0
    assert score(form.format(whole, f"{fixed:02}", f"{period + 1:03}"), str(value)) == 0.0


@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.parametrize("form", ["{}_{}", "{}_{{{}}}", "({})_{}", r"{}_{{({})}}"])
@given(value=st.integers(20, 10**6), base=st.integers(2, 16))
def test_bases_are_read_back(form: str, value: int, base: int) -> None:
    reference = f"{based(value, base)}_{{{base}}}"
    if reference[0].isdigit() or base > 10:
        assert score(form.format(based(value, base), base), reference) == 1.0
        assert score(form.format(based(value + 1, base), base), reference) == 0.0
        assert score(form.format(based(value, base), base + 1), reference) == 0.0
        assert base == 10 or score(based(value, base), reference) == 0.0


PAIRS: Final = {
    "tuple": "({}, {})",
    "tight": "({},{})",
    "sized": r"\left( {}, {} \right)",
    "angles": r"\langle {}, {} \rangle",
    "column": r"\begin{{pmatrix}} {} \\ {} \end{{pmatrix}}",
    "named": "x = {}, y = {}",
}


@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.parametrize("form", PAIRS)
@given(left=st.integers(-99, 99), right=st.integers(-99, 99))
def test_pairs_are_read_back_in_their_order(form: str, left: int, right: int) -> None:
    assert score(PAIRS[form].format(left, right), f"({left}, {right})") == 1.0
    assert score(PAIRS[form].format(left, right + 1), f"({left}, {right})") == 0.0
    assert left == right or score(PAIRS[form].format(right, left), f"({left}, {right})") == 0.0


INTERVALS: Final = {
    "[{0}, {1})": ("{0} \\le x < {1}", "{1} > x \\ge {0}", "x \\in [{0},{1})", "\\{{x \\mid {0} \\le x < {1}\\}}"),
    "({0}, \\infty)": ("x > {0}", "{0} < x", "\\{{x : x > {0}\\}}", "({0}, +\\infty)"),
    "(-\\infty, {0}]": ("x \\le {0}", "{0} \\ge x", "x \\in (-\\infty,{0}]"),
    "(-\\infty, {0}) \\cup ({1}, \\infty)": ("x < {0} \\text{{ or }} x > {1}", "({1},\\infty)\\cup(-\\infty,{0})"),
}


@settings(max_examples=EXAMPLES, deadline=None)
@pytest.mark.parametrize("interval", INTERVALS)
@given(low=st.integers(-99, 99), length=st.integers(1, 99))
def test_intervals_are_conditions_in_either_direction(interval: str, low: int, length: int) -> None:
    for condition in INTERVALS[interval]:
        ends = (low, low + length)
        assert score(condition.format(*ends), interval.format(*ends)) == 1.0
        assert score(interval.format(*ends), condition.format(*ends)) == 1.0
        assert score(condition.format(low - 1, low + length), interval.format(*ends)) == 0.0


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_reading_refuses_or_reads(text: str) -> None:
    with_a_reason(text)


PIECES: Final = (
    *"0123456789abcxyzei+-*/^_!%=<>()[]{}|,;:.$' ",
    *(r"\frac", r"\sqrt", r"\pi", r"\sin", r"\log", r"\text{or}", r"\left", r"\right", r"\{", r"\}", r"\pm", r"\infty"),
    *(r"\cup", r"\in", r"\begin{pmatrix}", r"\end{pmatrix}", r"\\", "&", r"\overline", r"^\circ", r"\text{ cm}"),
    *(r"\langle", r"\rangle", r"\mathbb{R}", r"\binom", r"\approx"),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_reading_refuses_or_reads_what_is_nearly_mathematics(text: str) -> None:
    with_a_reason(text)
    try:
        assert score("7" + text, "12") in (0.0, 1.0)
    except NotScorableError:
        pytest.fail("the reference is one that can be read")


def with_a_reason(text: str) -> None:
    surface(text)
    with contextlib.suppress(ExpressionError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        read_answer(text)
