"""What is only another way of writing a value, resolved: `a = b = c`, approximations, members of sets, ratios."""

from __future__ import annotations

import re
from typing import Any, Final

from reward_service.text.latex.forms.naming import names_whole_numbers
from reward_service.text.latex.forms.number_words import spelled
from reward_service.text.latex.matrices import every_sign
from reward_service.text.latex.quantities import same_quantities
from reward_service.text.latex.regions import as_region, variables
from reward_service.text.latex.units import denies, unit_name
from reward_service.text.latex.values import Chain, Quantity, Region, Relation, Sequence, Value, Words

CONTRADICTION: Final = Words("\0")
"""What is no answer, as it says two things: equal to nothing."""


def settled(value: Value) -> Value:
    """`value` with what is only another way of writing it resolved."""
    if isinstance(value, Chain):
        return _of_chain(value)
    if isinstance(value, Relation) and value.sign == "~":
        return _of_chain(Chain((value,)))
    if isinstance(value, Relation) and value.sign == "in" and isinstance(value.right, Sequence | Region):
        return _of_member(value.left, value.right) if is_name(value.left) else value
    if isinstance(value, Relation) and value.sign == "=" and _is_list(value.left) and isinstance(value.right, Sequence):
        assert isinstance(value.left, Sequence)
        if value.right.kind != "tuple" and all(map(_is_list, value.right.items)):  # (x, y) = (1, 2), (2, 1)
            return value.right
        pairs = tuple(Relation(*pair) for pair in _zipped(value.left.items, value.right.items))
        return Sequence("list", pairs) if pairs else value
    if isinstance(value, Sequence) and value.kind in ("list", "set", "tuple") and value.items:
        return _of_sequence(value)
    if isinstance(value, Relation) and _is_false(value):
        return CONTRADICTION
    if isinstance(value, Relation) and value.sign == "=" and is_name(value.right) and not is_name(value.left):
        return Relation(value.right, "=", value.left)
    return value


def _of_member(name: Value, of: Sequence | Region) -> Value:
    """`x \\in (0, 5)` is the interval, `x \\in \\{1, 2\\}` gives x two values."""
    if isinstance(of, Region):
        return of
    shape = as_region(of) if of.kind == "tuple" else None
    return Relation(name, "=", of) if shape is None else Region(shape)


def _is_list(value: Value) -> bool:
    return isinstance(value, Sequence) and value.kind != "ratio"


def _zipped(left: tuple[Value, ...], right: tuple[Value, ...]) -> list[tuple[Value, str, Value]]:
    return [(one, "=", other) for one, other in zip(left, right, strict=True)] if len(left) == len(right) else []


def _of_sequence(value: Sequence) -> Value:
    items = value.items
    if value.kind == "set" and len(items) == 1 and not isinstance(items[0], Region):  # {∅} is not ∅
        return items[0]
    if value.kind == "tuple" and isinstance(signed := every_sign(value), Sequence) and signed.kind == "list":
        return signed
    if value.kind in ("list", "set"):  # plus-minus within
        flat: list[Value] = []
        for item in items:
            nested = isinstance(item, Sequence) and item.kind == "list" and item.connector == ","
            flat += item.items if nested and isinstance(item, Sequence) else (item,)
        items = tuple(flat)
    relations = [item for item in items if isinstance(item, Relation) and item.sign == "="]
    if len(relations) == len(items) and all(same_name(relations[0].left, one.left) for one in relations):
        return Relation(
            relations[0].left, "=", Sequence("list", tuple(one.right for one in relations), value.connector)
        )
    return Sequence(value.kind, items, value.connector)


def _of_chain(chain: Chain) -> Value:
    """Of `a = b = c` the first and the last side. An approximation must be one; then what it approximates counts."""
    relations = list(chain.relations)
    while relations and relations[-1].sign == "~":
        left, right = relations[-1].left, relations[-1].right
        if is_asked_for(left) and not _is_number(left) and len(relations) == 1:
            return Relation(left, "=", right)
        if not (isinstance(left, Quantity) and isinstance(right, Quantity) and _approximates(left, right)):
            return CONTRADICTION
        relations.pop()
        if not relations:
            return left
    if len(relations) == 1:
        return settled(relations[0])
    signs = {one.sign for one in relations}
    if any(map(_is_false, relations)):
        return CONTRADICTION
    if signs == {"="}:
        return settled(Relation(relations[0].left, "=", relations[-1].right))
    return CONTRADICTION if "~" in signs else Chain(tuple(relations))


def _is_false(relation: Relation) -> bool:
    """`5 + 8 = 12`: an equation of two numbers that are not the same, nor one of them rounded."""
    left, right = relation.left, relation.right
    return (
        relation.sign == "="
        and isinstance(left, Quantity)
        and isinstance(right, Quantity)
        and bool(left.expression.is_number and right.expression.is_number)
        and (not left.unit or not right.unit or left.unit == right.unit)
        and not _approximates(left, right)
    )


def _is_number(value: Value) -> bool:
    return isinstance(value, Quantity) and bool(value.expression.is_number)


def _approximates(exact: Quantity, rounded: Quantity) -> bool:
    return same_quantities(exact, rounded, 1) or same_quantities(rounded, exact, 1)


def is_name(value: Value) -> bool:
    """A label: words, letters alone (`x`, `AB`, `f(x)`, `P_1`), or several of these."""
    if isinstance(value, Words):
        return not denies(value.text)
    if isinstance(value, Sequence):
        return all(is_name(item) for item in value.items)
    if not isinstance(value, Quantity) or value.unit:
        return False
    expression = value.expression
    if expression.func.__name__ == "Abs" and expression.args[0].is_Mul:  # |AB|
        expression = expression.args[0]
    factors = expression.args if expression.is_Mul else (expression,)
    return all(_is_letter(factor, len(factors) > 1) for factor in factors)


def _is_letter(factor: Any, in_product: bool) -> bool:
    """A letter, a function of a name (`f(x)`), or in a product what makes `\\frac{AB}{CD}`."""
    from sympy.core.function import AppliedUndef

    if factor.is_Symbol or isinstance(factor, AppliedUndef):
        return True
    if not in_product:
        return False
    return bool(factor.is_Pow and factor.base.is_Symbol and factor.exp == -1)


def is_asked_for(value: Value) -> bool:
    """What a question may ask the value of: a name, a function (`\\sin A`, `|z|`), a term of several letters (`x + y`).

    The value of `2x` is another than that of x.
    """
    if is_name(value) or not isinstance(value, Quantity):
        return is_name(value)
    expression = value.expression
    return not value.unit and bool(expression.is_number or expression.is_Function or len(expression.free_symbols) > 1)


def same_name(one: Value, other: Value) -> bool:
    if isinstance(one, Words) or isinstance(other, Words):
        return True  # "Area = 5" and "A = 5": words say what is meant, not what it is
    if one == other:
        return True
    (name, arguments), (other_name, others) = _function(one), _function(other)
    if None not in (arguments, others) or not name:  # of x and of t
        return False
    return name == other_name or ({name, other_name} == {"y", "f"} and "x" in (arguments, others))


def _function(value: Value) -> tuple[str, str | None]:
    """`y` and `x` of `y(x)`, `y` and None of `y`; empty for what names no function."""
    from sympy.core.function import AppliedUndef

    if not isinstance(value, Quantity) or value.unit:
        return "", None
    expression = value.expression
    if isinstance(expression, AppliedUndef) and all(one.is_Symbol for one in expression.args):
        return str(expression.func.__name__), ", ".join(map(str, expression.args))
    return (expression.name, None) if expression.is_Symbol else ("", None)


def without_domain(value: Value, other: Value) -> Value:
    """`n = 4k + 1, k \\in \\mathbb{Z}` beside what does not say where k is from: the whole numbers then are meant."""
    if not isinstance(value, Sequence) or value.kind != "list" or len(value.items) < 2:
        return value
    *rest, last = value.items
    if not names_whole_numbers(last) or (isinstance(other, Sequence) and any(map(names_whole_numbers, other.items))):
        return value
    if not all(variables(last) <= variables(one) for one in rest):
        return value
    return settled(rest[0] if len(rest) == 1 else Sequence("list", tuple(rest), value.connector))


def as_ratio(value: Value) -> Value:
    """What looks like a time of day is a ratio beside what is none."""
    if not isinstance(value, Words) or not re.fullmatch(r"[1-9][0-9]*(?::[1-9][0-9]*)+", value.text):
        return value
    import sympy

    return Sequence("ratio", tuple(Quantity(sympy.Integer(part)) for part in value.text.split(":")))


def as_quotient(value: Value) -> Value:
    """`3:2` is 3/2 beside a number."""
    if isinstance(value, Sequence) and value.kind == "ratio" and len(value.items) == 2:
        above, below = value.items
        if isinstance(above, Quantity) and isinstance(below, Quantity) and not below.expression.is_zero:
            return Quantity(above.expression / below.expression)
    return value


_RAISES: Final = ("squared", "cubed")


def as_number(value: Value) -> Value:
    """`thirty-two` as 32, beside a number or another way of saying one."""
    import sympy

    if not isinstance(value, Words):
        return value
    number, unit = spelled(value.text), ""
    if number is None:
        before, _, noun = value.text.rpartition(" ")
        number, unit = spelled(before), noun
        if (
            number is None
            or number.denominator > 1
            or not noun.isalpha()
            or noun in _RAISES
            or spelled(noun) is not None
        ):
            return value
    return Quantity(sympy.Rational(number.numerator, number.denominator), unit=unit_name(unit))
