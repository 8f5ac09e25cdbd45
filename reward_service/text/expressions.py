"""Expressions in one line of text, `2x^2 + sin(pi/3)`, as sympy objects, and whether two of them are the same function.

sympy's own readers (`sympify`, `parse_expr`) evaluate Python and must not see text from a model. This one knows
numbers, names, a list of functions and `+ - * / ^ ** !` with brackets, and nothing else:

- a number is exact (0.1 is 1/10), scientific notation included (`2e3` is 2000, `2e` is 2 times Euler's number);
- `pi`, `e` and `i` (or `E`, `I`) are the constants; any other name of at most 16 characters is a variable;
- a product may leave out its sign: `2x`, `3(x+1)`, `x y`; `xy` is one variable; `1/2x` is x/2;
- `-x^2` is -(x^2), `2^3^2` is 2^9, `sin^2(x)` is sin(x)^2;
- `name = expression` is the expression; `−`, `×`, `·`, `÷` and `π` are what they look like.

Sizes are limited before sympy works: characters, tokens, depth, digits, exponents.
"""

from __future__ import annotations

import hmac
import os
import random
import re
import secrets
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

MAX_CHARS: Final = 1000
MAX_TOKENS: Final = 300
MAX_DEPTH: Final = 30
MAX_DIGITS: Final = 50
MAX_EXPONENT: Final = 1000
"""Of a number's power, and of a decimal exponent."""
MAX_SYMBOLIC_EXPONENT: Final = 50
MAX_BITS: Final = 20_000
MAX_FACTORIAL: Final = 500

Assumption = Literal["complex", "real", "positive"]

_TOKEN: Final = re.compile(
    r"[ \t]*(?:(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z][A-Za-z0-9_]*)|(?P<operator>\*\*|[-+*/^!(),=]))[ \t]*"
)
_LOOKALIKES: Final = str.maketrans({"\u2212": "-", "×": "*", "·": "*", "÷": "/", "π": " pi "})
_FUNCTIONS: Final = {
    **{name: name for name in ("sqrt", "cbrt", "exp", "log", "floor", "sin", "cos", "tan", "cot", "sec", "csc")},
    **{name: name for name in ("sinh", "cosh", "tanh", "asin", "acos", "atan", "acot", "asinh", "acosh", "atanh")},
    **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "cot")},
    "ln": "log",
    "abs": "Abs",
    "Abs": "Abs",
    "ceil": "ceiling",
    "ceiling": "ceiling",
}
_GROWING: Final = ("exp", "sinh", "cosh")
_CONSTANTS: Final = {"pi": "pi", "e": "E", "E": "E", "i": "I", "I": "I"}
_SUM, _PRODUCT, _NEGATION, _POWER, _FACTORIAL = range(1, 6)  # what binds tighter is greater

_SIZES: Final = (3, 3, 3, 3, 40, 40, 1000, 1000)
"""Of the points that two functions are compared at: |x - 100| is 100 - x near 0."""
_DIGITS: Final = 40
_MAX_WORKING_DIGITS: Final = 400
_AGREEMENT: Final = 25  # digits
_SMALLEST: Final = 100  # places behind the point; what is smaller may be zero that was not recognised
_KEY: Final = os.environ.setdefault("RLVR_COMPARISON_KEY", secrets.token_hex(32))
"""Of the points: random for each service, as its workers inherit it, unless an operator sets the variable."""


class ExpressionError(ValueError):
    """The text is not an expression, or is too large for one."""


def parse_expression(text: str, assume: Assumption = "real") -> Any:
    """`text` as a sympy expression.

    Args:
        text: At most MAX_CHARS characters and MAX_TOKENS tokens.
        assume: What its variables are: complex, real or positive.

    Raises:
        ExpressionError: What is wrong with it.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"it has more than {MAX_CHARS} characters")
    tokens = list(_tokens(text.translate(_LOOKALIKES)))
    if len(tokens) > MAX_TOKENS:
        raise ExpressionError(f"it has more than {MAX_TOKENS} tokens")
    kinds = [kind for kind, _ in tokens[:2]]
    if kinds == ["name", "="] and tokens[0][1] not in _FUNCTIONS and tokens[0][1] not in _CONSTANTS:
        del tokens[:2]
    parser = _Parser(tokens, assume)
    expression = parser.read(0, 0)
    if parser.kind != "end":
        raise ExpressionError(f"{parser.text!r:.30} is not expected here")
    return _finite(expression)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """(kind, text): number, name, or the operator twice."""
    position = 0
    text = text.strip(" \t\r\n")
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"{text[position]!r} is not part of an expression")
        kind = str(match.lastgroup)
        yield (match[kind], match[kind]) if kind == "operator" else (kind, match[kind])
        position = match.end()


class _Parser:
    """Operator precedence by recursion; builds as it reads. Depth counts brackets, signs and right sides."""

    def __init__(self, tokens: list[tuple[str, str]], assume: Assumption) -> None:
        self._tokens = iter(tokens)
        self._assume = assume
        self.kind, self.text = "", ""  # of the token that comes next
        self._advance()

    def _advance(self) -> str:
        text = self.text
        self.kind, self.text = next(self._tokens, ("end", "the end"))
        return text

    def read(self, binding: int, depth: int) -> Any:
        """An expression of what binds tighter than `binding`."""
        if depth > MAX_DEPTH:
            raise ExpressionError(f"it is nested deeper than {MAX_DEPTH}")
        left = self._operand(depth)
        while True:
            kind = self.kind
            if kind == "!" and binding < _FACTORIAL:
                self._advance()
                left = _factorial(left)
            elif kind in ("^", "**") and binding < _POWER:
                self._advance()
                left = _power(left, self.read(_NEGATION, depth + 1))  # what is as tight stays on the right
            elif kind in ("*", "/") and binding < _PRODUCT:
                self._advance()
                right = self.read(_PRODUCT, depth + 1)
                left = left * right if kind == "*" else left / right
            elif kind in ("name", "(") and binding < _PRODUCT:
                left = left * self.read(_PRODUCT, depth + 1)
            elif kind in ("+", "-") and binding < _SUM:
                self._advance()
                right = self.read(_SUM, depth + 1)
                left = left + right if kind == "+" else left - right
            else:
                return left

    def _operand(self, depth: int) -> Any:
        import sympy

        kind, text = self.kind, self._advance()
        if kind == "number":
            return _number(text)
        if kind in ("+", "-"):
            operand = self.read(_NEGATION, depth + 1)
            return operand if kind == "+" else -operand
        if kind == "(":
            inner = self.read(0, depth + 1)
            self._expect(")")
            return inner
        if kind == "name":
            if text in _FUNCTIONS:
                return self._call(text, depth)
            if text in _CONSTANTS:
                return getattr(sympy, _CONSTANTS[text])
            if self.kind == "(" and len(text) > 1:  # `f(x)` is a product, `foo(x)` is not meant as one
                raise ExpressionError(f"there is no function {text[:20]!r}")
            if len(text) > 16:
                raise ExpressionError(f"the name {text[:20]!r} is too long")
            return sympy.Symbol(text, **{self._assume: True})
        raise ExpressionError(f"{text!r:.30} is not expected here")

    def _call(self, name: str, depth: int) -> Any:
        import sympy

        raised = None
        if self.kind in ("^", "**"):  # sin^2(x)
            self._advance()
            if not self.text.isdecimal():  # sin^-1 is the arc sine to some, and 1/sin to others
                raise ExpressionError(f"between {name} and its bracket only a whole power may stand: {name}^2(x)")
            raised = _number(self._advance())
        self._expect("(")
        arguments = [self.read(0, depth + 1)]
        if self.kind == "," and name == "log":  # log(x, base)
            self._advance()
            arguments.append(self.read(0, depth + 1))
        self._expect(")")
        if name in _GROWING and arguments[0].is_number and not abs(arguments[0].evalf(5)) <= MAX_EXPONENT:
            raise ExpressionError(f"the argument of {name} is too large")
        function: Callable[..., Any] = getattr(sympy, _FUNCTIONS[name])
        value = _finite(function(*arguments))
        return value if raised is None else _power(value, raised)

    def _expect(self, kind: str) -> None:
        if self.kind != kind:
            raise ExpressionError(f"{kind!r} is missing before {self.text!r:.30}")
        self._advance()


def _number(text: str) -> Any:
    import sympy

    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or len(exponent) > 6 or abs(int(exponent or "0")) > MAX_EXPONENT:
        raise ExpressionError(f"the number {text[:20]!r} is too large")
    return sympy.Rational(mantissa) * sympy.Integer(10) ** int(exponent or "0")


def _power(base: Any, exponent: Any) -> Any:
    check_power(base, exponent, MAX_EXPONENT)
    return _finite(base**exponent)


def check_power(base: Any, exponent: Any, max_exponent: int, max_bits: int = MAX_BITS) -> None:
    """ExpressionError if `base**exponent` must not be worked out: more than `max_exponent`, or too many digits.

    Args:
        base: A sympy expression.
        exponent: One that is no number is let through: nothing is worked out.
        max_exponent: Largest absolute value for a base that is a number; for others it is MAX_SYMBOLIC_EXPONENT.
        max_bits: Of the result.

    Raises:
        ExpressionError: It is larger.
    """
    if not exponent.is_number:
        return
    size = abs(exponent.evalf(5))
    if not size.is_number or not size < (max_exponent if base.is_number else MAX_SYMBOLIC_EXPONENT) + 1:
        raise ExpressionError("an exponent is too large")
    if base.is_Rational and max(abs(base.p), base.q).bit_length() * float(size) > max_bits:
        raise ExpressionError("a power is too large")


def _factorial(operand: Any) -> Any:
    import sympy

    if not operand.is_Integer or not 0 <= operand <= MAX_FACTORIAL:
        raise ExpressionError(f"a factorial is of a whole number up to {MAX_FACTORIAL} only")
    return sympy.factorial(operand)


def _finite(expression: Any) -> Any:
    import sympy

    if expression.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        raise ExpressionError("it has no finite value")
    return expression


def equivalent(left: Any, right: Any, assume: Assumption = "real") -> bool | None:
    """Whether two expressions are equal wherever both are defined.

    Values at a few points refute, `simplify` proves, and a difference that is a rational function with rational
    coefficients is decided either way. What is still open then (sympy cannot prove everything) is equal if it was at
    three points or more, to 25 digits: nobody writes such an answer without knowing the right one. The points come out
    of a hash of both expressions with a key that no caller knows, so that nothing can be made to vanish at them; the
    same two are compared at the same points by every process of a service (see `_KEY`).

    Args:
        left: a sympy expression of `parse_expression`.
        right: another.
        assume: what the variables stand for, as when the two were parsed.

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
    sizes = _SIZES[:4] * 2 if _grows(left) or _grows(right) else _SIZES
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
        yield point


def _grows(expression: Any) -> bool:
    """Whether it has no size that can be worked out far from 0: exponentials of exponentials, factorials."""
    import sympy

    powers = any(not power.exp.is_number for power in expression.atoms(sympy.Pow))
    return powers or expression.has(sympy.exp, sympy.sinh, sympy.cosh, sympy.factorial, sympy.gamma)


def _coordinate(generator: random.Random, size: int) -> Any:
    """Up to `size`; its denominator is as secret as the rest, as sin(k pi x) vanishes at all multiples of 1/k."""
    import sympy

    denominator = generator.randrange(10**6, 10**7)
    return sympy.Rational(generator.randrange(1, size * denominator), denominator)


def _agree(left: Any, right: Any, point: dict[Any, Any], assume: Assumption) -> bool | None:
    """Whether the values at a point are the same; None if one of them is not to be had there, or is as good as zero.

    With real variables a value that is not real is none: a root of a negative number, say.
    """
    import sympy

    try:
        one, other = (side.evalf(_DIGITS, subs=point, maxn=_MAX_WORKING_DIGITS) for side in (left, right))
    except OverflowError:
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
