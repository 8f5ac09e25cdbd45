"""Names that nobody's choice depends on: of a function's argument, of what counts whole numbers, of equal values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from reward_service.text.latex.regions import variables
from reward_service.text.latex.values import Chain, Quantity, Region, Relation, Sequence, Value

_COUNTERS: Final = frozenset("kmn")


def with_names_of(gold: Value, answer: Value) -> Value:
    """`answer` with the names that `gold` has for an argument and for what counts."""
    return _with_argument_of(gold, _with_counter_of(gold, answer))


def _with_argument_of(gold: Value, answer: Value) -> Value:
    """`f(t) = t^2` beside `f(x) = x^2`."""
    ours, theirs = _defined(gold), _defined(answer)
    if ours is None or theirs is None or ours.func != theirs.func or ours.args == theirs.args:
        return answer
    names = dict(zip(theirs.args, ours.args, strict=False))
    if len(ours.args) != len(theirs.args) or variables(answer) & (set(ours.args) - set(theirs.args)):
        return answer
    return _renamed(answer, names)


def _defined(value: Value) -> Any:
    """The function of different names that an equation defines; None if it is no such equation."""
    from sympy.core.function import AppliedUndef

    if not isinstance(value, Relation) or value.sign != "=" or not isinstance(value.left, Quantity):
        return None
    function = value.left.expression
    if not isinstance(function, AppliedUndef) or not all(one.is_Symbol for one in function.args):
        return None
    return function if len(set(function.args)) == len(function.args) else None


def _with_counter_of(gold: Value, answer: Value) -> Value:
    """`\\pi n, n \\in \\mathbb{Z}` beside `\\pi k, k \\in \\mathbb{Z}`, which either may leave out."""
    ours, theirs = _counter(gold), _counter(answer)
    if ours is None or theirs is None or ours == theirs or ours in variables(answer):
        return answer
    return _renamed(answer, {theirs: ours})


def _counter(value: Value) -> Any:
    """The name that is said to be a whole number, or can be nothing else as it counts multiples of pi; or None."""
    if isinstance(value, Sequence) and value.items and names_whole_numbers(last := value.items[-1]):
        return last.left.expression if isinstance(last, Relation) and isinstance(last.left, Quantity) else None
    if isinstance(value, Relation) and value.sign == "=":
        return _counter(value.right)
    parts = value.items if isinstance(value, Sequence) and value.kind == "list" else (value,)
    found = {_multiplier(one) for one in parts}
    return found.pop() if len(found) == 1 else None


def _multiplier(value: Value) -> Any:
    import sympy

    if isinstance(value, Relation) and value.sign == "=":
        return _multiplier(value.right)
    if not isinstance(value, Quantity):
        return None
    names = value.expression.free_symbols
    if len(names) != 1 or (name := next(iter(names))).name not in _COUNTERS:
        return None
    step = sympy.expand(value.expression).coeff(name) / sympy.pi
    return name if step.is_Rational and not step.is_zero else None


def names_whole_numbers(value: Value) -> bool:
    """Whether it says `k \\in \\mathbb{Z}`."""
    import sympy

    return (
        isinstance(value, Relation)
        and value.sign == "in"
        and isinstance(value.right, Region)
        and value.right.shape == sympy.S.Integers
    )


def each_named(value: Value) -> Value:
    """`x = y = z = 1` as `x = 1, y = 1, z = 1`; anything else as it is."""
    if not isinstance(value, Chain) or {one.sign for one in value.relations} != {"="}:
        return value
    names = [one.left for one in value.relations]
    symbols = {one.expression for one in names if isinstance(one, Quantity) and one.expression.is_Symbol}
    last = value.relations[-1].right
    if len(symbols) < len(names) or not isinstance(last, Quantity) or not last.expression.is_number:
        return value
    return Sequence("list", tuple(Relation(name, "=", last) for name in names))


def _renamed(value: Value, names: dict[Any, Any]) -> Value:
    if isinstance(value, Quantity):
        return replace(value, expression=value.expression.xreplace(names))
    if isinstance(value, Sequence):
        return replace(value, items=tuple(_renamed(item, names) for item in value.items))
    if isinstance(value, Relation):
        return replace(value, left=_renamed(value.left, names), right=_renamed(value.right, names))
    return value
