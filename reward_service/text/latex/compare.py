r"""Whether an answer's value is the reference's: exactly first, and to the digits given where a decimal was given.

- Numbers and expressions: equal as mathematics. A decimal may stand for an exact value if it is that value rounded to
  at least `digits` significant digits; a decimal in the reference stands for every exact value that rounds to it.
- `72\%` is 72 and 0.72, `30^\circ` is 30 and \pi/6, `5\text{ cm}` is 5, but not `5\text{ m}`.
- Lists and sets have no order, tuples and vectors have; `and` is not `or`. A list of two is the tuple of two.
- An interval is a condition on a variable, in either direction; of an equation with a name on its left the right side
  counts where the other is no equation.

None of these functions is symmetric where the docstring does not say so: the reference decides what is compared.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, Final

from reward_service.text.expressions import equivalent
from reward_service.text.latex.regions import as_region, variables
from reward_service.text.latex.units import denies
from reward_service.text.latex.values import Chain, Matrix, Quantity, Region, Relation, Sequence, Value, Words

_OPPOSITE: Final = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_FEW: Final = 3
"""With fewer significant digits a reference's decimal stands for what is within a thousandth; with one, for itself."""
_CONTRADICTION: Final = Words("\0")
"""What is no answer, as it says two things: equal to nothing."""


def same(gold: Value, answer: Value, digits: int = 6) -> bool:
    """Whether `answer` says what `gold` says."""
    gold, answer = _settled(gold), _settled(answer)
    if isinstance(gold, Relation | Chain) or isinstance(answer, Relation | Chain):
        return _same_relations(gold, answer, digits)
    if isinstance(gold, Quantity) and isinstance(answer, Quantity):
        return same_quantities(gold, answer, digits)
    if isinstance(gold, Words) != isinstance(answer, Words):
        gold, answer = _as_ratio(gold), _as_ratio(answer)
    if isinstance(gold, Quantity) != isinstance(answer, Quantity):
        gold, answer = _as_quotient(gold), _as_quotient(answer)
        if isinstance(gold, Quantity) and isinstance(answer, Quantity):
            return same_quantities(gold, answer, digits)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _same_words(gold, answer)
    if isinstance(gold, Region) or isinstance(answer, Region) or _is_condition(gold) != _is_condition(answer):
        return same_regions(gold, answer)
    return _same_collections(gold, answer, digits)


def _as_ratio(value: Value) -> Value:
    """What looks like a time of day is a ratio beside what is none."""
    if not isinstance(value, Words) or not re.fullmatch(r"[1-9][0-9]*(?::[1-9][0-9]*)+", value.text):
        return value
    import sympy

    return Sequence("ratio", tuple(Quantity(sympy.Integer(part)) for part in value.text.split(":")))


def _as_quotient(value: Value) -> Value:
    """`3:2` is 3/2 beside a number."""
    if isinstance(value, Sequence) and value.kind == "ratio" and len(value.items) == 2:
        above, below = value.items
        if isinstance(above, Quantity) and isinstance(below, Quantity) and not below.expression.is_zero:
            return Quantity(above.expression / below.expression)
    return value


def _is_condition(value: Value) -> bool:
    """Inequalities with `and` or `or` between them."""
    return isinstance(value, Sequence) and any(
        isinstance(item, Chain) or (isinstance(item, Relation) and item.sign != "=") for item in value.items
    )


def _settled(value: Value) -> Value:
    """`value` with what is only another way of writing it resolved."""
    if isinstance(value, Chain):
        return _of_chain(value)
    if isinstance(value, Relation) and value.sign == "~":
        return _of_chain(Chain((value,)))
    if isinstance(value, Relation) and value.sign == "in" and isinstance(value.right, Sequence | Region):
        return _of_member(value.left, value.right) if _is_name(value.left) else value
    if isinstance(value, Relation) and _is_list(value.left) and isinstance(value.right, Sequence):
        assert isinstance(value.left, Sequence)
        pairs = tuple(Relation(*pair) for pair in _zipped(value.left.items, value.right.items))
        return Sequence("list", pairs) if pairs else value
    if isinstance(value, Sequence) and value.kind in ("list", "set", "tuple") and value.items:
        return _of_sequence(value)
    if isinstance(value, Relation) and value.sign == "=" and _is_name(value.right) and not _is_name(value.left):
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
    if value.kind == "set" and len(items) == 1:
        return items[0]
    if value.kind in ("list", "set"):  # plus-minus within
        flat: list[Value] = []
        for item in items:
            nested = isinstance(item, Sequence) and item.kind == "list" and item.connector == ","
            flat += item.items if nested and isinstance(item, Sequence) else (item,)
        items = tuple(flat)
    relations = [item for item in items if isinstance(item, Relation) and item.sign == "="]
    if len(relations) == len(items) and all(_same_name(relations[0].left, one.left) for one in relations):
        return Relation(
            relations[0].left, "=", Sequence("list", tuple(one.right for one in relations), value.connector)
        )
    return Sequence(value.kind, items, value.connector)


def _of_chain(chain: Chain) -> Value:
    """Of `a = b = c` the first and the last side. An approximation must be one; then what it approximates counts."""
    relations = list(chain.relations)
    while relations and relations[-1].sign == "~":
        left, right = relations[-1].left, relations[-1].right
        if _is_asked_for(left) and not _is_number(left) and len(relations) == 1:
            return Relation(left, "=", right)
        if not (isinstance(left, Quantity) and isinstance(right, Quantity) and _approximates(left, right)):
            return _CONTRADICTION
        relations.pop()
        if not relations:
            return left
    if len(relations) == 1:
        return _settled(relations[0])
    signs = {one.sign for one in relations}
    if signs == {"="}:
        return _settled(Relation(relations[0].left, "=", relations[-1].right))
    return _CONTRADICTION if "~" in signs else Chain(tuple(relations))


def _is_number(value: Value) -> bool:
    return isinstance(value, Quantity) and bool(value.expression.is_number)


def _approximates(exact: Quantity, rounded: Quantity) -> bool:
    return same_quantities(exact, rounded, 1) or same_quantities(rounded, exact, 1)


def _is_name(value: Value) -> bool:
    """A label: words, letters alone (`x`, `AB`, `f(x)`, `P_1`), or several of these."""
    if isinstance(value, Words):
        return not denies(value.text)
    if isinstance(value, Sequence):
        return all(_is_name(item) for item in value.items)
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


def _is_asked_for(value: Value) -> bool:
    """What a question may ask the value of: a name, a function (`\\sin A`, `|z|`), a term of several letters (`x + y`).

    The value of `2x` is another than that of x.
    """
    if _is_name(value) or not isinstance(value, Quantity):
        return _is_name(value)
    expression = value.expression
    return not value.unit and bool(expression.is_number or expression.is_Function or len(expression.free_symbols) > 1)


def _same_name(one: Value, other: Value) -> bool:
    if isinstance(one, Words) or isinstance(other, Words):
        return True  # "Area = 5" and "A = 5": words say what is meant, not what it is
    return one == other


def _same_relations(gold: Value, answer: Value, digits: int) -> bool:
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_relation(gold, answer, digits)
    if isinstance(gold, Relation | Chain) and isinstance(answer, Relation | Chain):
        return variables(gold) == variables(answer) and same_regions(gold, answer)
    relation, other = (gold, answer) if isinstance(gold, Relation | Chain) else (answer, gold)
    if isinstance(relation, Relation) and relation.sign == "=":
        if not (_is_name if relation is gold else _is_asked_for)(relation.left):
            return False
        return same(relation.right, other, digits) if relation is gold else same(other, relation.right, digits)
    return isinstance(other, Region | Sequence) and same_regions(gold, answer)


def _same_relation(gold: Relation, answer: Relation, digits: int) -> bool:
    if gold.sign == answer.sign and _same_name(gold.left, answer.left) and same(gold.right, answer.right, digits):
        return True
    sides = (gold.left, gold.right, answer.left, answer.right)
    if not all(isinstance(side, Quantity) for side in sides):
        return False
    one, other = (_difference(relation) for relation in (gold, answer))
    factor = _constant_ratio(one, other)
    if factor is None or factor.is_zero:
        return False
    if gold.sign in ("=", "!="):
        return gold.sign == answer.sign
    return answer.sign == (gold.sign if factor.is_positive else _OPPOSITE[gold.sign])


def _difference(relation: Relation) -> Any:
    assert isinstance(relation.left, Quantity)
    assert isinstance(relation.right, Quantity)
    return relation.left.expression - relation.right.expression


def _constant_ratio(one: Any, other: Any) -> Any:
    """The number that `one` is `other` times; None if it is not constant."""
    import sympy

    if other.is_zero or one.free_symbols != other.free_symbols or not one.free_symbols:
        return None
    ratio = sympy.cancel(one / other) if (one / other).is_rational_function() else sympy.simplify(one / other)
    return ratio if ratio.is_number and ratio.is_finite else None


def same_regions(gold: Value, answer: Value) -> bool:
    """Whether both are the same set of real numbers. Symmetric."""
    one, other = as_region(gold), as_region(answer)
    if one is None or other is None:
        return False
    if one == other:
        return True
    try:
        return bool(one.symmetric_difference(other).is_empty) or _same_ends(one, other)
    except (TypeError, ValueError, NotImplementedError):
        return False


def _same_ends(one: Any, other: Any) -> bool:
    import sympy

    if isinstance(one, sympy.Union) and isinstance(other, sympy.Union) and len(one.args) == len(other.args):
        rest = list(other.args)
        for part in one.args:
            match = next((candidate for candidate in rest if _same_ends(part, candidate)), None)
            if match is None:
                return False
            rest.remove(match)
        return True
    if isinstance(one, sympy.FiniteSet) and isinstance(other, sympy.FiniteSet):
        return _matched(tuple(map(Quantity, one)), tuple(map(Quantity, other)), 12)
    if not isinstance(one, sympy.Interval) or not isinstance(other, sympy.Interval):
        return bool(one == other)
    ends = ((one.start, other.start), (one.end, other.end))
    return (one.left_open, one.right_open) == (other.left_open, other.right_open) and all(
        bool(left == right) or equivalent(left, right) is True for left, right in ends if left != right
    )


def _same_words(gold: Value, answer: Value) -> bool:
    if isinstance(gold, Words) and isinstance(answer, Words):
        return gold == answer != _CONTRADICTION
    words, other = (gold, answer) if isinstance(gold, Words) else (answer, gold)
    if isinstance(words, Words) and isinstance(other, Quantity) and other.expression.is_Symbol:
        return bool(words.text == other.expression.name.lower())
    return False


def _same_collections(gold: Value, answer: Value, digits: int) -> bool:
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        pairs = [(len(one), len(other)) for one, other in zip(gold.rows, answer.rows, strict=False)]
        if len(gold.rows) != len(answer.rows) or any(one != other for one, other in pairs):
            return False
        rows = zip(gold.rows, answer.rows, strict=True)
        return all(_in_order(one, other, digits) for one, other in rows)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        vectors = [_as_vector(value) for value in (gold, answer)]
        return vectors[0] is not None and vectors[1] is not None and _in_order(vectors[0], vectors[1], digits)
    if isinstance(gold, Sequence) and isinstance(answer, Sequence):
        return _same_sequences(gold, answer, digits)
    return False


def _as_vector(value: Value) -> tuple[Value, ...] | None:
    if isinstance(value, Matrix):
        if len(value.rows[0]) == 1:
            return tuple(row[0] for row in value.rows)
        return value.rows[0] if len(value.rows) == 1 else None
    return value.items if isinstance(value, Sequence) and value.kind in ("tuple", "square") else None


def _same_sequences(gold: Sequence, answer: Sequence, digits: int) -> bool:
    kinds = {gold.kind, answer.kind}
    if len(gold.items) != len(answer.items):
        return False
    if kinds == {"ratio"}:
        return _same_ratio(gold, answer)
    if "ratio" in kinds or kinds in ({"set", "tuple"}, {"set", "square"}):
        return False
    if kinds <= {"list", "set"}:
        if {gold.connector, answer.connector} == {"and", "or"}:
            return False
        return _matched(gold.items, answer.items, digits)
    pairs = zip(gold.items, answer.items, strict=True)
    return all(same(_right(one), _right(other), digits) for one, other in pairs)


def _right(value: Value) -> Value:
    named = isinstance(value, Relation) and value.sign == "=" and _is_name(value.left)
    return value.right if named and isinstance(value, Relation) else value


def _same_ratio(gold: Sequence, answer: Sequence) -> bool:
    ones, others = gold.items, answer.items
    if any(isinstance(item, Words) for item in (*ones, *others)):
        return _in_order(ones, others, 12)
    parts = [[item.expression for item in items if isinstance(item, Quantity)] for items in (ones, others)]
    first, second = parts
    return len(first) == len(second) == len(ones) and all(
        equivalent(first[0] * right, second[0] * left) is True
        for left, right in zip(first[1:], second[1:], strict=True)
    )


def _in_order(ones: tuple[Value, ...], others: tuple[Value, ...], digits: int) -> bool:
    return len(ones) == len(others) and all(same(one, other, digits) for one, other in zip(ones, others, strict=True))


def _matched(golds: tuple[Value, ...], answers: tuple[Value, ...], digits: int) -> bool:
    """Whether each has its own counterpart, in any order."""
    rest = list(answers)
    relations = (
        all(isinstance(one, Relation | Chain) for one in golds),
        all(isinstance(one, Relation | Chain) for one in answers),
    )
    if relations in ((True, False), (False, True)):  # x = 1, y = 2 against 1, 2: their order is what is left
        return len(golds) == len(answers) and all(
            same(_right(one), _right(other), digits) for one, other in zip(golds, answers, strict=True)
        )
    for gold in golds:
        index = next((index for index, answer in enumerate(rest) if same(gold, answer, digits)), None)
        if index is None:
            return False
        del rest[index]
    return not rest


def same_quantities(gold: Quantity, answer: Quantity, digits: int) -> bool:
    """Whether two numbers or expressions are the same, units, percent and degree signs included."""
    gold, answer = _with_unit(gold, answer), _with_unit(answer, gold)
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    return any(_same_numbers(one, gold.digits, other, answer.digits, digits) for one, other in _readings(gold, answer))


def _with_unit(quantity: Quantity, other: Quantity) -> Quantity:
    """`5 m` beside `5\\text{ m}` has a unit, not a variable."""
    import sympy

    symbol = sympy.Symbol(other.unit, real=True) if len(other.unit) == 1 and not quantity.unit else None
    if symbol is None or not (quantity.expression / symbol).is_number:
        return quantity
    return Quantity(quantity.expression / symbol, quantity.digits, other.unit)


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
