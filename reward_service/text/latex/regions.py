"""Values as sets of real numbers: intervals, finite sets, conditions on one variable."""

from __future__ import annotations

from typing import Any

from reward_service.text.latex.values import Chain, Quantity, Region, Relation, Sequence, Value


def as_region(value: Value) -> Any:
    """A value as a sympy Set of real numbers, if it can be one: an interval, a finite set, inequalities; else None."""
    import sympy

    if isinstance(value, Region):
        return value.shape
    if isinstance(value, Sequence) and value.kind == "set" and all(isinstance(one, Quantity) for one in value.items):
        return sympy.FiniteSet(*(one.expression for one in value.items if isinstance(one, Quantity)))
    if isinstance(value, Sequence) and value.kind == "tuple" and len(value.items) == 2:
        return _open_interval(value)
    if isinstance(value, Relation):
        return _relation_region(value)
    if isinstance(value, Chain):
        return _joined([as_region(one) for one in value.relations], "and") if len(variables(value)) == 1 else None
    if isinstance(value, Sequence) and value.kind == "list" and len(variables(value)) < 2:
        relations = all(isinstance(one, Relation | Chain) for one in value.items)
        signs = {one.sign for one in value.items if isinstance(one, Relation)}
        if relations and (signs != {"="} or any(isinstance(one, Chain) for one in value.items)):
            shapes = [as_region(one) for one in value.items]
            both = None if value.connector == "or" else _joined(shapes, "and")
            # "x < 1, x > 3" can only mean either; with "and" it is what it says
            either = value.connector == "or" or (value.connector == "," and both is not None and both.is_empty)
            return _joined(shapes, "or") if either else both
        if value.connector == "or":
            return _joined([_unbounded(one) for one in value.items], "or")
    return None


def _unbounded(value: Value) -> Any:
    """An interval, or what can be no point as it has an infinite end."""
    import sympy

    shape = as_region(value)
    if isinstance(value, Region) or shape is None:
        return shape
    return shape if isinstance(shape, sympy.Interval) and (shape.start.is_infinite or shape.end.is_infinite) else None


def _open_interval(value: Sequence) -> Any:
    import sympy

    low, high = value.items
    if not isinstance(low, Quantity) or not isinstance(high, Quantity):
        return None
    try:
        shape = sympy.Interval.open(low.expression, high.expression)
        return None if shape.is_empty else shape
    except (TypeError, ValueError):
        return None


def _joined(shapes: list[Any], how: str) -> Any:
    import sympy

    if any(shape is None for shape in shapes):
        return None
    return sympy.Union(*shapes) if how == "or" else sympy.Intersection(*shapes)


def _relation_region(relation: Relation) -> Any:
    """`x > 2` as an open interval; None where there is not one name on one side and a number on the other."""
    import sympy
    from sympy.core.function import AppliedUndef

    left, sign, right = relation.left, relation.sign, relation.right
    if sign == "in":
        named = isinstance(left, Quantity) and isinstance(left.expression, sympy.Symbol | AppliedUndef)
        return as_region(right) if named else None
    if not isinstance(left, Quantity) or not isinstance(right, Quantity):
        return None
    if left.expression.is_number and not right.expression.is_number:
        left, right, sign = right, left, {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(sign, sign)
    if isinstance(left.expression, sympy.Abs):
        return _absolute_region(left.expression.args[0], sign, right.expression)
    if (
        not isinstance(left.expression, sympy.Symbol | AppliedUndef)
        or right.expression.free_symbols & left.expression.free_symbols
    ):
        return None
    bound, oo = right.expression, sympy.oo
    if not (bound.is_real or bound in (oo, -oo)):
        return None
    return {
        "<": lambda: sympy.Interval.open(-oo, bound),
        ">": lambda: sympy.Interval.open(bound, oo),
        "<=": lambda: sympy.Interval(-oo, bound),
        ">=": lambda: sympy.Interval(bound, oo),
        "!=": lambda: sympy.S.Reals - sympy.FiniteSet(bound),
        "=": lambda: sympy.FiniteSet(bound),
    }[sign]()


def _absolute_region(inner: Any, sign: str, bound: Any) -> Any:
    """`|x - 3| < 2` as the interval from 1 to 5, `>` as what is beside it; None for what is no name and a number."""
    import sympy

    names = inner.free_symbols
    if len(names) != 1 or not (inner - (name := next(iter(names)))).is_number or not bound.is_positive:
        return None
    middle = name - inner
    if not middle.is_real or not bound.is_real or sign not in ("<", "<=", ">", ">="):
        return None
    open_ends = sign in ("<", ">=")
    within = sympy.Interval(middle - bound, middle + bound, open_ends, open_ends)
    return within if sign in ("<", "<=") else sympy.S.Reals - within


def variables(value: Value) -> set[Any]:
    """The names that a condition is about."""
    if isinstance(value, Relation):
        return variables(value.left) | (set() if value.sign == "in" else variables(value.right))
    if isinstance(value, Chain):
        return set().union(*(variables(one) for one in value.relations))
    if isinstance(value, Sequence):
        return set().union(*(variables(one) for one in value.items))
    return set(value.expression.free_symbols) if isinstance(value, Quantity) else set()
