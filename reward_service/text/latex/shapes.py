"""Values out of what a structure holds: brackets, intervals, determinants, sets, signs of plus and minus."""

from __future__ import annotations

import re
from typing import Any, Final

from reward_service.text.expressions import ExpressionError
from reward_service.text.latex.regions import as_region, variables
from reward_service.text.latex.tokens import CURRENCIES, Token
from reward_service.text.latex.values import Chain, Matrix, Quantity, Region, Relation, Sequence, Value, Words

BRACKETS: Final = {"(": ")", "[": "]", "\\lbrace": "\\rbrace", "\\langle": "\\rangle", "{": "}"}
_DECIMAL: Final = re.compile(r"[0-9]*\.[0-9]+")
_MAX_DETERMINANT: Final = 4


def listed(items: list[Value], connector: str) -> Value:
    """`n = 2, 3, 4` gives one name three values; otherwise a list of what there is."""
    first = items[0]
    if (
        isinstance(first, Relation)
        and first.sign == "="
        and not any(isinstance(one, Relation | Chain) for one in items[1:])
    ):
        return Relation(first.left, "=", Sequence("list", (first.right, *items[1:]), connector))
    if isinstance(first, Relation) and first.sign == "!=" and all(isinstance(one, Quantity) for one in items[1:]):
        return Sequence("list", (first, *(Relation(first.left, "!=", one) for one in items[1:])), connector)
    return Sequence("list", tuple(items), connector)


def enclosed(opening: str, items: list[Value], closing: str, connector: str) -> Value | None:
    if connector != ",":
        raise ExpressionError("words stand in brackets")
    if opening == "\\lbrace" and closing == "\\rbrace":
        return Sequence("set", tuple(items))
    if opening == "{" and closing == "}":  # which LaTeX does not show
        return None if len(items) == 1 else Sequence("list", tuple(items))
    if opening == "\\langle" and closing == "\\rangle":
        return Sequence("tuple", tuple(items))
    if len(items) == 1:
        if isinstance(items[0], Quantity) and opening in ("(", "[") and closing == BRACKETS[opening]:
            return None
        if (opening == "(" and closing == ")") or isinstance(items[0], Matrix):
            return items[0]
        raise ExpressionError("brackets that are not read")
    if len(items) == 2 and (opening, closing) != ("(", ")"):
        return interval(opening, items, closing)
    kinds = {("(", ")"): "tuple", ("[", "]"): "square"}
    if (opening, closing) not in kinds:
        raise ExpressionError(f"{opening} does not fit {closing}")
    return Sequence(kinds[opening, closing], tuple(items))  # type: ignore[arg-type]


def interval(opening: str, items: list[Value], closing: str) -> Value:
    import sympy

    low, high = items
    if not isinstance(low, Quantity) or not isinstance(high, Quantity):
        if (opening, closing) == ("[", "]"):
            return Sequence("square", tuple(items))
        raise ExpressionError("an interval is of two numbers")
    try:
        shape = sympy.Interval(low.expression, high.expression, opening in ("(", "]"), closing in (")", "["))
    except (TypeError, ValueError):
        raise ExpressionError("an interval is of two real numbers") from None
    if shape.is_empty and (opening, closing) == ("[", "]"):
        return Sequence("square", tuple(items))
    if shape.is_empty:
        raise ExpressionError("an interval ends before it begins")
    return Region(shape)


def determinant(rows: list[tuple[Value, ...]]) -> Value:
    import sympy

    entries = [[one.expression for one in row if isinstance(one, Quantity)] for row in rows]
    if not all(len(row) == len(rows) <= _MAX_DETERMINANT for row in entries):
        raise ExpressionError("a determinant is of a small square of expressions")
    return Quantity(sympy.Matrix(entries).det())


def piecewise(rows: list[tuple[Value, ...]]) -> Value:
    """Values with the regions where they hold, in no order; ExpressionError if a condition is not of one variable."""
    import sympy

    regions = [None if _is_rest(row[-1]) else as_region(row[-1]) for row in rows]
    if len(set().union(*(variables(row[-1]) for row in rows))) > 1:
        raise ExpressionError("conditions of several variables are not read")
    if any(region is None and not _is_rest(row[-1]) for region, row in zip(regions, rows, strict=True)):
        raise ExpressionError("a condition is not read")
    rest = sympy.S.Reals - sympy.Union(*(region for region in regions if region is not None))
    pieces = [(row[0], Region(rest if region is None else region)) for region, row in zip(regions, rows, strict=True)]
    return Sequence("list", tuple(Sequence("tuple", piece) for piece in pieces))


def _is_rest(value: Value) -> bool:
    return isinstance(value, Words) and value.text in ("otherwise", "else", "elsewhere")


def named_region(name: str) -> Region:
    import sympy

    return Region(getattr(sympy.S, name))


def positive_part(numbers: Any) -> Any:
    """Of the whole numbers, the real ones or the quotients what is above 0."""
    import sympy

    if numbers in (sympy.S.Integers, sympy.S.Naturals):
        return sympy.S.Naturals
    return numbers.intersect(sympy.Interval.open(0, sympy.oo))


def combined(left: Value, sign: str, right: Value) -> Value:
    """Union, intersection or difference of two sets."""
    import sympy

    one, other = as_region(left), as_region(right)
    if isinstance(left, Quantity) and isinstance(right, Quantity):  # sets by their names
        pair = [left.expression, right.expression]
        pair = pair if sign == "\\setminus" else sorted(pair, key=str)
        return Quantity(sympy.Function(sign, real=True)(*pair))
    if one is None or other is None:
        raise ExpressionError(f"{sign} stands between what are not sets")
    if sign == "\\cup":
        return Region(one.union(other))
    return Region(one.intersect(other) if sign == "\\cap" else one - other)


def both_signs(quantity: Quantity, signs: list[Any]) -> Value:
    """`\\pm 2` as the list of 2 and -2."""
    expressions = [quantity.expression]
    for sign in signs:
        expressions = [one.subs(sign, value) for one in expressions for value in (1, -1)]
    items = tuple(Quantity(one, quantity.digits, quantity.unit, quantity.percent) for one in dict.fromkeys(expressions))
    return items[0] if len(items) == 1 else Sequence("list", items, ",")


def with_greek_unit(expression: Any, unit: str) -> tuple[Any, str]:
    r"""`6\Omega` and `6\mu\text{m}` as 6 with its unit: the letter is no variable there."""
    import sympy

    for name, whole in (("Omega", "ohm" if not unit else ""), ("mu", f"µ{unit}" if len(unit) == 1 else "")):
        symbol = sympy.Symbol(name, real=True)
        if whole and expression.has(symbol) and (number := expression / symbol).is_number and number != 1:
            return number, whole
    return expression, unit


def significant_digits(written: list[Token]) -> int | None:
    """How many significant digits a decimal has, alone or times a power of ten; None if there is no decimal, 0 if there
    is one within a term."""
    passed_over = ("%", "\\degree", "(", ")", "{", "}", "scale", *CURRENCIES)
    kinds = [token.kind for token in written if token.kind not in passed_over]
    while kinds[:1] in (["-"], ["+"]):
        kinds = kinds[1:]
    texts = [token.text for token in written if token.kind == "number"]
    if not any("." in text for text in texts):
        return None
    mantissa = texts[0].lower().partition("e")[0]
    alone = kinds == ["number"]
    scientific = (
        len(kinds) > 3 and kinds[1] in ("\\times", "\\cdot", "*") and texts[1:2] == ["10"] and kinds[3] in ("^", "**")
    )
    if not (alone or scientific) or _DECIMAL.fullmatch(mantissa) is None:
        return 0
    return len(mantissa.replace(".", "").lstrip("0")) or 1
