"""Functions by cases: the same wherever either is defined, whichever case a boundary is counted to."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

from reward_service.text.expressions import equivalent
from reward_service.text.latex.values import Quantity, Region, Sequence, Value


def same_function(gold: Value, answer: Value) -> bool:
    """Whether two functions of one variable are the same, at least one of which is given by cases. Symmetric."""
    import sympy

    one, other = _pieces(gold), _pieces(answer)
    if one is None or other is None or len(one) + len(other) < 3:
        return False
    names = {name for expression, _ in (*one, *other) for name in expression.free_symbols}
    domains = [sympy.Union(*(where for _, where in pieces)) for pieces in (one, other)]
    if len(names) > 1 or domains[0] != domains[1]:
        return False
    name = next(iter(names), sympy.Dummy(real=True))
    return all(_agree(left, right, name, here & there) for left, here in one for right, there in other)


def _pieces(value: Value) -> Many[tuple[Any, Any]] | None:
    """Expressions with where they hold; None for what is no function."""
    import sympy

    if isinstance(value, Quantity):
        return None if value.unit else [(value.expression, sympy.S.Reals)]
    if not isinstance(value, Sequence) or value.kind != "list":
        return None
    pieces = [
        (item.items[0].expression, item.items[1].shape)
        for item in value.items
        if isinstance(item, Sequence) and item.kind == "tuple" and len(item.items) == 2
        if isinstance(item.items[0], Quantity) and isinstance(item.items[1], Region)
    ]
    return pieces if len(pieces) == len(value.items) else None


def _agree(left: Any, right: Any, name: Any, where: Any) -> bool:
    import sympy

    if where.is_empty or left == right:
        return True
    if isinstance(where, sympy.Union):
        return all(_agree(left, right, name, part) for part in where.args)
    if isinstance(where, sympy.FiniteSet):
        return all(equivalent(left.subs(name, at), right.subs(name, at)) is True for at in where)
    if not isinstance(where, sympy.Interval):
        return False
    step = sympy.Dummy(positive=True)  # what stands for the variable there runs through the open interval
    if where.end.is_infinite:
        inside = step - 1 / step if where.start.is_infinite else where.start + step
    else:
        inside = where.end - step if where.start.is_infinite else where.start + where.measure * step / (1 + step)
    ends = where - where.interior
    return equivalent(left.subs(name, inside), right.subs(name, inside), "positive") is True and _agree(
        left, right, name, ends
    )
