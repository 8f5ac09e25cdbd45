r"""Sums, products, limits and integrals of one variable, worked out where that is soon done and sure.

What sympy finds for infinite sums and integrals is compared with a value found numerically in another way: a formula
that steps over a pole is not believed. What is not worked out is an ExpressionError.
"""

from __future__ import annotations

from typing import Any, Final

from reward_service.text.expressions import ExpressionError
from reward_service.text.latex.operations import MAX_BITS

OPERATORS: Final = ("\\sum", "\\prod", "\\lim", "\\int")
MAX_TERMS: Final = 500
MAX_OPERATIONS: Final = 25
MAX_FUNCTIONS: Final = 2
"""In an integrand: of more sympy looks for seconds."""
_ARROWS: Final = ("=", "\\to", "\\rightarrow", "\\longrightarrow")
_AGREES: Final = 1e-7


def read_operator(reader: Any, kind: str, depth: int) -> Any:
    """What stands behind the operator that `reader` has just passed, worked out.

    Args:
        reader: a `reward_service.text.latex.read.Reader`.
        kind: one of OPERATORS.
        depth: of brackets and operands around it.

    Raises:
        ExpressionError: it is not of one variable, or cannot be worked out surely and soon.
    """
    lower = upper = None
    while reader.kind in ("_", "^"):
        if reader.advance().kind == "_":
            lower = _group(reader)
        else:
            upper = reader._script(depth)
    if kind == "\\int":
        body, name = _integrand(reader)
        return integral(body, name, None if lower is None else _whole(reader, lower), upper)
    name, start, direction = _lower(reader, lower)
    body = reader.read(1, depth + 1)  # up to the next sign of a sum
    if kind == "\\lim":
        return limit(body, name, start, direction)
    return summed(body, name, start, upper) if kind == "\\sum" else multiplied(body, name, start, upper)


def _group(reader: Any) -> list[Any]:
    """The tokens of a group in braces, without these, or one token."""
    if reader.kind != "{":
        return [reader.advance()]
    found: list[Any] = []
    depth = 0
    while True:
        token = reader.advance()
        depth += (token.kind == "{") - (token.kind == "}")
        if depth == 0 or token.kind == "end":
            return found[1:]
        found.append(token)


def _whole(reader: Any, tokens: list[Any]) -> Any:
    inner = type(reader)(tokens, reader.log_base)
    value = inner.read()
    if inner.kind != "end":
        raise ExpressionError("a bound is not read")
    return value


def _lower(reader: Any, tokens: list[Any] | None) -> tuple[Any, Any, str]:
    """Of `k = 1` or `x \\to 0^+` the name, the value and the side."""
    if tokens is None or len(tokens) < 3 or tokens[0].kind not in ("letter", "name") or tokens[1].kind not in _ARROWS:
        raise ExpressionError("an operator does not say where it begins")
    side = [token.kind for token in tokens if token.kind not in ("{", "}")][-2:]
    direction = "+-"
    if side in (["^", "+"], ["^", "-"]):
        direction = side[1]
        tokens = tokens[: max(index for index, token in enumerate(tokens) if token.kind == "^")]
    return _whole(reader, tokens[:1]), _whole(reader, tokens[2:]), direction


def _integrand(reader: Any) -> tuple[Any, Any]:
    """What stands before `dx`, and x."""
    depth = 0
    for index in range(reader.at, len(reader.tokens) - 1):
        token, following = reader.tokens[index], reader.tokens[index + 1]
        depth += (token.kind in "{(") - (token.kind in "})")
        if depth == 0 and token.kind in ("letter", "text") and token.text == "d" and following.kind == "letter":
            body = _whole(reader, reader.tokens[reader.at : index]) if index > reader.at else _one()
            reader.at = index + 2
            return body, _whole(reader, [following])
    raise ExpressionError("an integral does not say of which variable")


def _one() -> Any:
    import sympy

    return sympy.Integer(1)


def _check(body: Any, name: Any) -> None:
    from sympy.core.function import AppliedUndef

    if not name.is_Symbol or not body.free_symbols <= {name} or body.atoms(AppliedUndef):
        raise ExpressionError("an operator is worked out for one variable only")
    if body.count_ops() > MAX_OPERATIONS:
        raise ExpressionError("an operator's argument is too long")


def summed(body: Any, name: Any, start: Any, end: Any) -> Any:
    """Of few terms by adding them, of a polynomial's by formula, of infinitely many by sympy's formulas."""
    import sympy

    if end is None:
        raise ExpressionError("a sum does not say where it ends")
    if start.is_Integer and end.is_Integer and end - start < MAX_TERMS:
        return sympy.Add(*_terms(body, name, start, end))
    _check(body, name)
    counter = sympy.Dummy(integer=True)
    term = body.subs(name, counter)
    if body.is_polynomial(name) and end != sympy.oo and start.is_Integer:
        return sympy.expand(sympy.summation(term, (counter, start, end)))
    if end != sympy.oo or not start.is_Integer:
        raise ExpressionError("a sum of too many terms")
    found = sympy.Sum(term, (counter, start, end))
    return _agreed(found.doit(), found)


def multiplied(body: Any, name: Any, start: Any, end: Any) -> Any:
    """The product of few terms."""
    import sympy

    if end is None or not (start.is_Integer and end.is_Integer and end - start < MAX_TERMS):
        raise ExpressionError("a product of too many terms")
    value = sympy.Integer(1)
    for term in _terms(body, name, start, end):
        value *= term
        if value.is_Rational and max(abs(value.p), value.q).bit_length() > MAX_BITS:
            raise ExpressionError("a number is too large")
    return value


def _terms(body: Any, name: Any, start: Any, end: Any) -> list[Any]:
    import sympy

    if body.count_ops() > MAX_OPERATIONS:
        raise ExpressionError("an operator's argument is too long")
    terms = [body.subs(name, sympy.Integer(value)) for value in range(int(start), int(end) + 1)]
    if any(term.has(sympy.nan, sympy.zoo) for term in terms):
        raise ExpressionError("it divides by zero")
    return terms


def limit(body: Any, name: Any, at: Any, direction: str) -> Any:
    """ExpressionError where there is none."""
    import sympy

    _check(body, name)
    try:
        value = sympy.limit(body, name, at, direction)
    except (NotImplementedError, ValueError) as error:
        raise ExpressionError(f"a limit is not found: {error!s:.50}") from None
    if value.has(sympy.Limit, sympy.AccumBounds, sympy.nan, sympy.zoo):
        raise ExpressionError("a limit is not found")
    return value


def integral(body: Any, name: Any, low: Any, high: Any) -> Any:
    """Between two bounds, or without any and with a constant C."""
    import sympy
    from sympy.integrals.manualintegrate import manualintegrate

    _check(body, name)
    if (low is None) != (high is None):
        raise ExpressionError("an integral has one bound only")
    if len(body.atoms(sympy.Function)) > MAX_FUNCTIONS:
        raise ExpressionError("an integrand has too many functions")
    found = manualintegrate(body, name)
    if found.has(sympy.Integral, sympy.Piecewise):
        raise ExpressionError("an integral is not found")
    if low is None:
        return found + sympy.Symbol("C", real=True)
    if low.free_symbols or high.free_symbols:
        raise ExpressionError("an integral's bounds are no numbers")
    ends = [sympy.limit(found, name, at) if at.is_infinite else found.subs(name, at) for at in (low, high)]
    return _agreed(sympy.simplify(ends[1] - ends[0]), sympy.Integral(body, (name, low, high)))


def _agreed(value: Any, found: Any) -> Any:
    """`value` if it is what `found` comes to numerically."""
    if not (value.is_number and value.is_finite):
        raise ExpressionError("it has no finite value")
    try:
        difference = abs(complex(value.evalf(15)) - complex(found.evalf(15)))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ExpressionError(f"it is not worked out: {error!s:.50}") from None
    if not difference <= _AGREES * max(1.0, abs(complex(value.evalf(15)))):
        raise ExpressionError("two ways of working it out disagree")
    return value
