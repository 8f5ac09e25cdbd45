"""Whether two sympy expressions are the same function."""

from __future__ import annotations

import hmac
import os
import random
import secrets
from collections.abc import Iterator
from typing import Any, Final, Literal

Assumption = Literal["complex", "real", "positive"]

_SIZES: Final = (3, 3, 3, 3, 40, 40, 10_000, 10_000)
"""Of the points that two functions are compared at: |x - 100| is 100 - x near 0. The last ones are far from it."""
_DIGITS: Final = 40
_MAX_WORKING_DIGITS: Final = 400
_AGREEMENT: Final = 25  # digits
_SMALLEST: Final = 100  # places behind the point; what is smaller may be zero that was not recognised
_KEY: Final = os.environ.setdefault("RLVR_COMPARISON_KEY", secrets.token_hex(32))
"""Of the points: random for each service, as its workers inherit it, unless an operator sets the variable."""


class ExpressionError(ValueError):
    """The text is not an expression, or is too large for one."""


def equivalent(left: Any, right: Any, assume: Assumption = "real") -> bool | None:
    """Whether two expressions are equal wherever both are defined.

    Values at a few points refute, `simplify` proves, and a difference that is a rational function with rational
    coefficients is decided either way. What is still open then (sympy cannot prove everything) is equal if it was at
    three points or more, to 25 digits: nobody writes such an answer without knowing the right one. The points come out
    of a hash of both expressions with a key that no caller knows, so that nothing can be made to vanish at them; the
    same two are compared at the same points by every process of a service (see `_KEY`).

    Args:
        left: a sympy expression.
        right: another.
        assume: what the variables of both stand for.

    Returns:
        None if it could not be found out.
    """
    import sympy

    if left == right:
        return True
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    points = list(_points(left, right, symbols, assume))
    agreements = [_agree(left, right, point, assume) for point in points]
    if not any(agreement is not None for agreement in agreements):  # real nowhere
        agreements = [_agree(left, right, point, "complex") for point in points]
    if False in agreements:
        return False
    difference = sympy.simplify(left - right)
    if difference == 0:
        return True
    if difference.is_zero is False:
        return False
    inexact = difference.has(sympy.Float, sympy.NumberSymbol, sympy.I, sympy.Function) or any(
        not power.exp.is_Integer for power in difference.atoms(sympy.Pow)
    )
    if difference.is_rational_function(*symbols) and not inexact:
        return bool(sympy.cancel(difference) == 0)
    return True if agreements.count(True) >= min(3, len(agreements)) else None


def _points(left: Any, right: Any, symbols: list[Any], assume: Assumption) -> Iterator[dict[Any, Any]]:
    import sympy

    seed = hmac.digest(_KEY.encode(), f"{left}\0{right}".encode(), "sha256")
    generator = random.Random(seed)
    grows = _grows(left) or _grows(right)
    sizes = _SIZES[:4] * 2 if grows else _SIZES
    powers = left.atoms(sympy.Pow) | right.atoms(sympy.Pow)
    raised = any(power.base.free_symbols and power.exp.free_symbols for power in powers)
    first = [_coordinate(generator, sizes[0]) for _ in symbols]
    for index, size in enumerate(sizes if symbols else sizes[:1]):
        point = {}
        for at, symbol in enumerate(symbols):
            value = _coordinate(generator, size)
            if index in (0, 2):  # in both orders: max(a, b) is not a
                value = first[at if index else -1 - at]
            if assume != "positive" and index % 2 and (index != 3 or generator.random() < 0.5):
                value = -value
            point[symbol] = value + sympy.I * _coordinate(generator, size) if assume == "complex" else value
        # no fractions in (1 + x)^y: sympy works that out exactly, to a million digits
        yield {symbol: value.evalf(2 * _MAX_WORKING_DIGITS) for symbol, value in point.items()} if raised else point
    jumps = left.has(sympy.floor, sympy.ceiling) or right.has(sympy.floor, sympy.ceiling)
    if jumps and not grows:
        for step in (sympy.Integer(60), sympy.Rational(1, 2)):  # where they jump, so exactly
            yield {symbol: step * (2 * generator.randrange(100) + 1) for symbol in symbols}


def _grows(expression: Any) -> bool:
    """Whether it has no size that can be worked out far from 0: exponentials of exponentials, factorials."""
    import sympy

    powers = any(not power.exp.is_number for power in expression.atoms(sympy.Pow))
    return powers or expression.has(sympy.exp, sympy.sinh, sympy.cosh, sympy.factorial, sympy.gamma)


def _coordinate(generator: random.Random, size: int) -> Any:
    """Up to `size`; its denominator is as secret as the rest, as sin(k pi x) vanishes at all multiples of 1/k."""
    import sympy

    denominator = generator.randrange(10**6, 10**7)
    smallest = size * denominator // 2 if size == _SIZES[-1] else 1
    return sympy.Rational(generator.randrange(smallest, size * denominator), denominator)


def _agree(left: Any, right: Any, point: dict[Any, Any], assume: Assumption) -> bool | None:
    """Whether the values at a point are the same; None if one of them is not to be had there, or is as good as zero.

    With real variables a value that is not real is none: a root of a negative number, say.
    """
    import sympy

    try:
        if all(value.is_Rational and value.q < 3 for value in point.values()):
            left, right = left.xreplace(point), right.xreplace(point)
        one, other = (side.evalf(_DIGITS, subs=point, maxn=_MAX_WORKING_DIGITS) for side in (left, right))
    except (ArithmeticError, RecursionError):  # too large, or too close to where a floor jumps
        return None
    if not all(value.is_number and value.is_finite for value in (one, other)):
        return None
    if (
        assume == "real"
        and point
        and not (left.has(sympy.I) or right.has(sympy.I))
        and not (one.is_real and other.is_real)
    ):
        return None
    size = max(abs(one), abs(other))
    if size < sympy.Float(10) ** -_SMALLEST:
        return None
    return bool(abs(one - other) <= size * sympy.Float(10) ** -_AGREEMENT)
