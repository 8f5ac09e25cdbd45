"""What makes up an expression: numbers, powers, quotients, functions, each within sizes that sympy soon works out."""

from __future__ import annotations

import re
from fractions import Fraction
from math import prod
from typing import Any, Final

from reward_service.text.expressions import ExpressionError

MAX_DIGITS: Final = 1000
MAX_FACTORIAL: Final = 5000
MAX_EXPONENT: Final = 10_000
"""Of a number's power."""
MAX_SYMBOLIC_EXPONENT: Final = 50
MAX_BITS: Final = 200_000


def number(text: str) -> Any:
    """A decimal as sympy's Rational; ExpressionError if it is too long."""
    import sympy

    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 5:
        raise ExpressionError(f"the number {text[:20]!r} is too large")
    return sympy.Rational(mantissa.rstrip(".")) * sympy.Integer(10) ** int(exponent or "0")


def repeating(text: str) -> Any:
    r"""`0.1\overline{6}`, `0.(3)`, `0.\dot3`, `0.\dot14285\dot7` as sympy's Rational."""
    import sympy

    whole, _, places = text.partition(".")
    first = re.search(r"\\|\(", places)
    assert first is not None
    fixed = places[: first.start()]
    period = re.sub(r"[^0-9]", "", places[first.start() :])
    scale, nines = 10 ** len(fixed), 10 ** len(period) - 1
    value = Fraction(int((whole + fixed) or "0"), scale) + Fraction(int(period), scale * nines)
    return sympy.Rational(value.numerator, value.denominator)


def quotient(above: Any, below: Any) -> Any:
    """ExpressionError for a division by zero."""
    if below.is_zero:
        raise ExpressionError("it divides by zero")
    return bounded(above / below)


def bounded(value: Any) -> Any:
    """`value`; ExpressionError if it is a number of so many digits that working with it takes long."""
    if value.is_Rational and max(abs(value.p), value.q).bit_length() > MAX_BITS:
        raise ExpressionError("a number is too large")
    return value


def power(base: Any, exponent: Any) -> Any:
    """ExpressionError if the power is too large to be worked out; with a symbol as exponent nothing is."""
    if exponent.is_number:
        size = abs(exponent.evalf(5))
        if not size.is_number or not size < (MAX_EXPONENT if base.is_number else MAX_SYMBOLIC_EXPONENT) + 1:
            raise ExpressionError("an exponent is too large")
        if base.is_Rational and max(abs(base.p), base.q).bit_length() * float(size) > MAX_BITS:
            raise ExpressionError("a power is too large")
    if base.is_zero and exponent.is_negative:
        raise ExpressionError("it divides by zero")
    return base**exponent


def factorial(operand: Any) -> Any:
    """Worked out for whole numbers up to MAX_FACTORIAL, left standing for expressions."""
    import sympy

    if operand.is_number and not (operand.is_Integer and 0 <= operand <= MAX_FACTORIAL):
        raise ExpressionError(f"a factorial is of a whole number up to {MAX_FACTORIAL} only")
    return sympy.factorial(operand)


def multifactorial(operand: Any, step: int) -> Any:
    """`7!!` is 7 * 5 * 3, `7!!!` is 7 * 4 * 1: not the factorial of a factorial, which needs brackets."""
    import sympy

    if operand.is_number and not (operand.is_Integer and 0 <= operand <= MAX_FACTORIAL):
        raise ExpressionError(f"a multifactorial is of a whole number up to {MAX_FACTORIAL} only")
    if step == 2 or not operand.is_Integer:
        return sympy.factorial2(operand) if step == 2 else sympy.Function(f"factorial{step}")(operand)
    return sympy.Integer(prod(range(int(operand), 0, -step)))


def remainder(left: Any, right: Any) -> Any:
    """`17 \\bmod 6`, of whole numbers."""
    if not (left.is_Integer and right.is_Integer and right.is_positive):
        raise ExpressionError("a remainder is of whole numbers only")
    return left % right


def binomial(above: Any, below: Any) -> Any:
    """Worked out for numbers up to MAX_FACTORIAL."""
    import sympy

    if any(one.is_number and not (one.is_Integer and 0 <= one <= MAX_FACTORIAL) for one in (above, below)):
        raise ExpressionError(f"a binomial is of whole numbers up to {MAX_FACTORIAL} only")
    return sympy.binomial(above, below)


def apply(name: str, arguments: list[Any], base: Any = None) -> Any:
    """A function of its arguments; ExpressionError if there is no value, or too large a one."""
    import sympy

    if name == "log":
        arguments = [*arguments, base] if base is not None else arguments
    elif name == "lg":
        name, arguments = "log", [*arguments, sympy.Integer(10)]
    if name in ("exp", "sinh", "cosh") and arguments[0].is_number and not abs(arguments[0].evalf(5)) <= MAX_EXPONENT:
        raise ExpressionError(f"the argument of {name} is too large")
    if name == "acot" and arguments[0].is_positive:  # as a quotient of a tangent it is simplified further
        return sympy.atan(1 / arguments[0])
    if name == "cis":
        return sympy.cos(arguments[0]) + sympy.I * sympy.sin(arguments[0])
    if name == "gcd" or name == "lcm":
        if any(one.is_number and not one.is_Integer for one in arguments):
            raise ExpressionError(f"{name} is of whole numbers only")
        if not all(one.is_number for one in arguments):
            return sympy.Function(name, real=True)(*sorted(arguments, key=str))
        return sympy.Integer(getattr(sympy, name)(arguments))
    try:
        value = getattr(sympy, name)(*arguments)
    except (TypeError, ValueError) as error:
        raise ExpressionError(f"{name} does not take that: {error!s:.50}") from None
    if value.has(sympy.nan, sympy.zoo):
        raise ExpressionError("it has no finite value")
    return value
