"""Whether two numbers or expressions are the same: exactly first, and to the digits given where a decimal was given."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from itertools import permutations
from typing import Any, Final

from reward_service.text.expressions import equivalent
from reward_service.text.latex.forms.amounts import ratio
from reward_service.text.latex.values import Quantity

_FEW: Final = 3
"""With fewer significant digits a reference's decimal stands for what is within a thousandth; with one, for itself."""

_ASKED_CONSTANTS: Final = ("C", "C_1", "C_2", "C_3", "c_1", "c_2", "c_3")
_CONSTANTS: Final = frozenset(
    ("C", "c", "K", "k", "A", "B", "D", *(f"{letter}_{index}" for letter in "CcKkAB" for index in "0123"))
)
_MAX_CONSTANTS: Final = 3
"""Names of what any number may stand for, beside the variables of a formula."""
_ONE_WORD: Final = ({"lb", "pound sterling"}, {"yuan yen", "yen"}, {"yuan yen", "yuan"})
"""What one word or sign stands for both of."""


def same_quantities(gold: Quantity, answer: Quantity, digits: int) -> bool:
    """Whether two numbers or expressions are the same, units, percent and degree signs included."""
    gold, answer = _with_unit(gold, answer), _with_unit(answer, gold)
    answer = _converted(answer, gold.unit)
    answer = _with_constant(gold, answer)
    gold, answer = _in_percent(gold, answer), _in_percent(answer, gold)
    if "percent" in (gold.unit, answer.unit) and gold.unit != answer.unit:
        return False
    if gold.unit and answer.unit and gold.unit != answer.unit and {gold.unit, answer.unit} not in _ONE_WORD:
        return False
    if (gold.compound and not answer.unit) or (answer.compound and not gold.unit):
        return False
    if (gold.percent and answer.unit) or (answer.percent and gold.unit):
        return False
    return any(_same_numbers(one, gold.digits, other, answer.digits, digits) for one, other in _readings(gold, answer))


def _with_constant(gold: Quantity, answer: Quantity) -> Quantity:
    """`x^2 + c` beside `x^2 + C`: of an integral the constant has any name; `3 + 4j` beside what has an i."""
    import sympy

    imaginary = sympy.Symbol("j", real=True)
    theirs, ours = gold.expression, answer.expression
    if theirs.has(sympy.I) and not theirs.free_symbols and ours.free_symbols == {imaginary}:
        return replace(answer, expression=ours.subs(imaginary, sympy.I))
    if not theirs.free_symbols & ours.free_symbols:
        return answer
    wanted = sorted((one for one in theirs.free_symbols if one.name in _ASKED_CONSTANTS), key=str)
    given = sorted((one for one in ours.free_symbols if one in wanted or one.name in _CONSTANTS), key=str)
    given = [one for one in given if one in wanted or one not in theirs.free_symbols]
    if not len(wanted) == len(given) <= _MAX_CONSTANTS:
        return answer
    named = (ours.xreplace(dict(zip(order, wanted, strict=True))) for order in permutations(given))
    return replace(answer, expression=next((one for one in named if equivalent(theirs, one) is True), ours))


def _in_percent(quantity: Quantity, other: Quantity) -> Quantity:
    """`two percent` beside `2\\%`; beside a plain number the word says what a sign does not."""
    return replace(quantity, unit="", percent=True) if quantity.unit == "percent" and other.percent else quantity


def _with_unit(quantity: Quantity, other: Quantity) -> Quantity:
    """`5 m` beside `5\\text{ m}` or `500\\text{ cm}` has a unit, not a variable; so has `5mg` beside `5\\text{ mg}`."""
    if quantity.unit or not other.unit or not (names := quantity.expression.free_symbols):
        return quantity
    if "".join(sorted(name.name for name in names)) == "gm" and ratio("mg", other.unit) is not None:
        number = quantity.expression / math.prod(names)
        return Quantity(number, quantity.digits, "mg") if number.is_number else quantity
    if len(names) != 1:
        return quantity
    symbol = next(iter(names))
    name = "L" if symbol.name == "l" else symbol.name
    if (name != other.unit and (len(name) > 1 or ratio(name, other.unit) is None)) or (
        not (number := quantity.expression / symbol).is_number
    ):
        return quantity
    return Quantity(number, quantity.digits, name)


def _converted(quantity: Quantity, unit: str) -> Quantity:
    """An amount in another unit of its kind; what is of no kind or another as it is."""
    import sympy

    if not unit or quantity.unit in ("", unit) or (factor := ratio(quantity.unit, unit)) is None:
        return quantity
    return replace(
        quantity, expression=quantity.expression * sympy.Rational(factor.numerator, factor.denominator), unit=unit
    )


def _readings(gold: Quantity, answer: Quantity) -> list[tuple[Any, Any]]:
    """The pairs of values that may be compared: `50\\%` is 50 or 1/2 beside a number without a percent sign."""
    import sympy

    left, right = gold.expression, answer.expression
    readings = [(left, right)]
    if gold.percent != answer.percent:
        percent = left if gold.percent else right
        if percent.is_number and bool(abs(percent) < 1):  # 0.5 beside 0.5 % may mean a half
            readings = []
        readings.append((left / 100, right) if gold.percent else (left, right / 100))
    if gold.degrees != answer.degrees:
        radians = sympy.pi / 180
        if "rad" in (gold.unit, answer.unit):  # 45 radians are not 45 degrees
            readings = []
        readings.append((left * radians, right) if gold.degrees else (left, right * radians))
    return readings


def _same_numbers(gold: Any, gold_digits: int | None, answer: Any, answer_digits: int | None, digits: int) -> bool:
    if gold == answer:
        return True
    if not (gold.is_Rational and answer.is_Rational) and equivalent(gold, answer) is True:
        return True
    if (gold_digits is None and answer_digits is None) or not (gold.is_real and answer.is_real):
        return False
    if not (gold.is_number and answer.is_number):
        return False
    if answer_digits is not None and (gold_digits is None or answer_digits <= gold_digits):
        return answer_digits >= digits and not gold.is_Integer and _rounds_to(gold, answer, answer_digits)
    assert gold_digits is not None
    if answer.is_Integer or gold_digits < 2:
        return False
    if answer_digits is not None and (answer_digits < max(6, gold_digits + 3) or _is_beside(gold, answer, gold_digits)):
        return False
    return (gold_digits >= _FEW or _relative(gold, answer) <= Decimal("0.001")) and _rounds_to(
        answer, gold, gold_digits
    )


def _is_beside(gold: Any, answer: Any, digits: int) -> bool:
    """Whether a decimal is the reference but for its far digits (12.5000001): rounded values do not look like that."""
    return _relative(gold, answer) < Decimal(1).scaleb(-digits - 3)


def _rounds_to(exact: Any, rounded: Any, digits: int) -> bool:
    """Whether `exact` differs from `rounded` by half a unit of its last significant digit at most."""
    wanted = _decimal(rounded, digits + 10)
    if wanted == 0:
        return False
    unit = Decimal(1).scaleb(wanted.adjusted() - digits + 1)
    return abs(_decimal(exact, digits + 10) - wanted) * 2 <= unit


def _relative(gold: Any, answer: Any) -> Decimal:
    value = _decimal(answer, 20)
    return abs(_decimal(gold, 20) - value) / abs(value) if value else Decimal(1)


def _decimal(number: Any, digits: int) -> Decimal:
    return Decimal(str(number.evalf(min(digits, 1000))))
