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

from typing import Any, Final

from reward_service.text.expressions import equivalent
from reward_service.text.latex.forms.naming import each_named, with_names_of
from reward_service.text.latex.forms.pieces import same_function
from reward_service.text.latex.matrices import by_name, components
from reward_service.text.latex.quantities import same_quantities
from reward_service.text.latex.regions import as_region, variables
from reward_service.text.latex.settle import (
    CONTRADICTION,
    as_number,
    as_quotient,
    as_ratio,
    is_asked_for,
    is_name,
    same_name,
    settled,
    without_domain,
)
from reward_service.text.latex.values import Chain, Matrix, Quantity, Region, Relation, Sequence, Value, Words

_OPPOSITE: Final = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def same(gold: Value, answer: Value, digits: int = 6) -> bool:
    """Whether `answer` says what `gold` says."""
    return _same(gold, with_names_of(gold, answer), digits)


def _same(gold: Value, answer: Value, digits: int) -> bool:
    if isinstance(gold, Chain | Sequence) and isinstance(answer, Chain | Sequence):
        gold, answer = each_named(gold), each_named(answer)
    gold, answer = settled(gold), settled(answer)
    gold, answer = without_domain(gold, answer), without_domain(answer, gold)
    if isinstance(gold, Relation | Chain) or isinstance(answer, Relation | Chain):
        return _same_relations(gold, answer, digits)
    if isinstance(gold, Quantity) and isinstance(answer, Quantity):
        return _same_sums_of_unit_vectors(gold, answer, digits) or same_quantities(gold, answer, digits)
    if isinstance(gold, Words) != isinstance(answer, Words):
        gold, answer = as_ratio(gold), as_ratio(answer)
    if isinstance(gold, Words) or isinstance(answer, Words):
        gold, answer = as_number(gold), as_number(answer)
        if isinstance(gold, Quantity) and isinstance(answer, Quantity):
            return same_quantities(gold, answer, digits)
    if isinstance(gold, Quantity) != isinstance(answer, Quantity):
        gold, answer = as_quotient(gold), as_quotient(answer)
        if isinstance(gold, Quantity) and isinstance(answer, Quantity):
            return same_quantities(gold, answer, digits)
    if isinstance(gold, Words) or isinstance(answer, Words):
        return _same_words(gold, answer)
    if isinstance(gold, Quantity) != isinstance(answer, Quantity):
        return _same_unit_vectors(gold, answer, digits) or same_function(gold, answer)
    if isinstance(gold, Matrix) or isinstance(answer, Matrix):
        return _same_matrices(gold, answer, digits)
    if isinstance(gold, Region) or isinstance(answer, Region) or _is_condition(gold) != _is_condition(answer):
        return same_regions(gold, answer)
    if _same_collections(gold, answer, digits) or same_function(gold, answer):
        return True
    return _is_condition(gold) and variables(gold) == variables(answer) and same_regions(gold, answer)


def _is_condition(value: Value) -> bool:
    """Inequalities with `and` or `or` between them."""
    return isinstance(value, Sequence) and any(
        isinstance(item, Chain) or (isinstance(item, Relation) and item.sign != "=") for item in value.items
    )


def _same_relations(gold: Value, answer: Value, digits: int) -> bool:
    if isinstance(gold, Relation) and isinstance(answer, Relation):
        return _same_relation(gold, answer, digits)
    if isinstance(gold, Chain) and isinstance(answer, Chain) and _same_chain(gold, answer, digits):
        return True
    if isinstance(gold, Relation | Chain) and isinstance(answer, Relation | Chain):
        return variables(gold) == variables(answer) and same_regions(gold, answer)
    relation, other = (gold, answer) if isinstance(gold, Relation | Chain) else (answer, gold)
    if isinstance(relation, Relation) and relation.sign == "=":
        if not (is_name if relation is gold else is_asked_for)(relation.left) or _names_several(relation, other):
            return False
        return _same(relation.right, other, digits) if relation is gold else _same(other, relation.right, digits)
    return isinstance(other, Region | Sequence) and same_regions(gold, answer)


def _same_chain(gold: Chain, answer: Chain, digits: int) -> bool:
    """Link by link; `c > b > a` is `a < b < c`."""
    back = tuple(Relation(one.right, _OPPOSITE.get(one.sign, ""), one.left) for one in reversed(answer.relations))
    return any(
        [one.sign for one in gold.relations] == [one.sign for one in links]
        and all(
            _same(one.left, other.left, digits) and _same(one.right, other.right, digits)
            for one, other in zip(gold.relations, links, strict=True)
        )
        for links in (answer.relations, back)
    )


def _names_several(relation: Relation, other: Value) -> bool:
    """Whether `relation` gives one name several values, and `other` several names one each (not `x_1 = 1, x_2 = 2`)."""
    if not (isinstance(relation.right, Sequence) and relation.right.kind == "list" and isinstance(other, Sequence)):
        return False
    names = [one.left for one in other.items if isinstance(one, Relation)]
    letters = {str(name.expression).partition("_")[0] for name in (relation.left, *names) if isinstance(name, Quantity)}
    return bool(names) and len(letters) > 1


def _same_relation(gold: Relation, answer: Relation, digits: int) -> bool:
    if gold.sign == answer.sign and same_name(gold.left, answer.left) and _same(gold.right, answer.right, digits):
        return True
    sides = (gold.left, gold.right, answer.left, answer.right)
    if not all(isinstance(side, Quantity) and not side.unit for side in sides):
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
    except (TypeError, ValueError, NotImplementedError):  # sympy's words for "these sets are beyond me"
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
        return gold == answer != CONTRADICTION
    words, other = (gold, answer) if isinstance(gold, Words) else (answer, gold)
    if isinstance(words, Words) and isinstance(other, Quantity) and other.expression.is_Symbol:
        return bool(words.text == other.expression.name.lower())
    return False


def _same_matrices(gold: Value, answer: Value, digits: int) -> bool:
    if isinstance(gold, Matrix) != isinstance(answer, Matrix):
        gold, answer = _as_matrix(gold), _as_matrix(answer)
    if isinstance(gold, Matrix) and isinstance(answer, Matrix):
        pairs = [(len(one), len(other)) for one, other in zip(gold.rows, answer.rows, strict=False)]
        if len(gold.rows) != len(answer.rows) or any(one != other for one, other in pairs):
            return False
        rows = zip(gold.rows, answer.rows, strict=True)
        return all(_in_order(one, other, digits) for one, other in rows)
    return _same_vectors(_as_vector(gold), _as_vector(answer), digits)


def _same_vectors(one: tuple[Value, ...] | None, other: tuple[Value, ...] | None, digits: int) -> bool:
    return one is not None and other is not None and _in_order(one, other, digits)


def _same_unit_vectors(gold: Value, answer: Value, digits: int) -> bool:
    """`2i + 3j` beside a vector."""
    vector = _as_vector(answer if isinstance(gold, Quantity) else gold)
    if vector is None:
        return False
    pair = [components(one, len(vector)) if isinstance(one, Quantity) else vector for one in (gold, answer)]
    return _same_vectors(pair[0], pair[1], digits)


def _same_sums_of_unit_vectors(gold: Quantity, answer: Quantity, digits: int) -> bool:
    """`2i + 3j` beside the same with hats or arrows."""
    if not (_has_marks(gold) or _has_marks(answer)):
        return False
    one, other = components(gold, 3), components(answer, 3)
    return one is not None and other is not None and _in_order(one, other, digits)


def _has_marks(value: Quantity) -> bool:
    return any(name.name.startswith(("\\hat", "\\vec")) for name in value.expression.free_symbols)


def _same_collections(gold: Value, answer: Value, digits: int) -> bool:
    if isinstance(gold, Sequence) and isinstance(answer, Sequence):
        return _same_sequences(gold, answer, digits)
    return False


def _as_matrix(value: Value) -> Value:
    """`[[1, 2], [3, 4]]` as its rows."""
    if not isinstance(value, Sequence) or value.kind != "square":
        return value
    rows = [row for item in value.items if (row := _as_row(item)) is not None]
    return Matrix(tuple(rows)) if len(rows) == len(value.items) and len(set(map(len, rows))) == 1 else value


def _as_row(value: Value) -> tuple[Value, ...] | None:
    """What stands in square brackets; two numbers there were read as an interval."""
    import sympy

    if isinstance(value, Region) and isinstance(value.shape, sympy.Interval):
        shape = value.shape
        return None if shape.left_open or shape.right_open else (Quantity(shape.start), Quantity(shape.end))
    return value.items if isinstance(value, Sequence) and value.kind == "square" else None


def _as_vector(value: Value) -> tuple[Value, ...] | None:
    if isinstance(value, Matrix):
        if len(value.rows[0]) == 1:
            return tuple(row[0] for row in value.rows)
        return value.rows[0] if len(value.rows) == 1 else None
    return value.items if isinstance(value, Sequence) and value.kind == "tuple" else _as_row(value)


def _same_sequences(gold: Sequence, answer: Sequence, digits: int) -> bool:
    kinds = {gold.kind, answer.kind}
    if kinds == {"set"} and Words("…") not in gold.items:  # where nothing counts twice
        return _within(gold.items, answer.items, digits) and all(
            any(_same(one, other, digits) for one in gold.items) for other in answer.items
        )
    if len(gold.items) != len(answer.items):
        return False
    if kinds == {"ratio"}:
        return _same_ratio(gold, answer)
    if "ratio" in kinds or kinds in ({"set", "tuple"}, {"set", "square"}):
        return False
    if kinds <= {"list", "set"}:
        if _is_one_of(gold) != _is_one_of(answer) or _chooses_names(gold) or _chooses_names(answer):
            return False
        if {gold.connector, answer.connector} == {"and", "or"}:
            return False
        if Words("…") in gold.items:  # what goes on goes on from something
            return _in_order(gold.items, answer.items, digits)
        return _matched(gold.items, answer.items, digits)
    if "or" in (gold.connector, answer.connector):  # the order of a choice says nothing
        return False
    pairs = zip(gold.items, by_name(answer.items), strict=True)
    return all(_same(_right(one), _right(other), digits) for one, other in pairs)


def _is_one_of(value: Sequence) -> bool:
    """`A or C`, which is not `A, C`; of numbers `2 or 3` are the values that something has, as `2, 3` are."""
    return value.connector == "or" and all(is_name(item) for item in value.items)


def _chooses_names(value: Sequence) -> bool:
    """`x = 1 or y = 2`, which gives neither a value."""
    return value.connector == "or" and len({str(one.left) for one in value.items if isinstance(one, Relation)}) > 1


def _within(golds: tuple[Value, ...], answers: tuple[Value, ...], digits: int) -> bool:
    return all(any(_same(gold, answer, digits) for answer in answers) for gold in golds)


def _right(value: Value) -> Value:
    named = isinstance(value, Relation) and value.sign == "=" and is_name(value.left)
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
    return len(ones) == len(others) and all(_same(one, other, digits) for one, other in zip(ones, others, strict=True))


def _matched(golds: tuple[Value, ...], answers: tuple[Value, ...], digits: int) -> bool:
    """Whether each has its own counterpart, in any order."""
    rest = list(answers)
    relations = (
        all(isinstance(one, Relation | Chain) for one in golds),
        all(isinstance(one, Relation | Chain) for one in answers),
    )
    if relations in ((True, False), (False, True)):  # x = 1, y = 2 against 1, 2: their order is what is left
        return len(golds) == len(answers) and all(
            _same(_right(one), _right(other), digits) for one, other in zip(golds, by_name(answers), strict=True)
        )
    for gold in golds:
        index = next((index for index, answer in enumerate(rest) if _same(gold, answer, digits)), None)
        if index is None:
            return False
        del rest[index]
    return not rest
