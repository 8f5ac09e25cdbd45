"""Matrices and vectors in other writings: factors before them, sums, transposes, unit vectors, signs in a tuple."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, Final

from reward_service.text.expressions import ExpressionError
from reward_service.text.latex.values import Matrix, Quantity, Relation, Sequence, Value

_MAX_TUPLES: Final = 16
_MAX_INVERTED: Final = 4
_UNIT_VECTORS: Final = (("i", "j", "k"), ("\\hat{i}", "\\hat{j}", "\\hat{k}"), ("\\vec{i}", "\\vec{j}", "\\vec{k}"))


def scaled(factor: Value, matrix: Matrix) -> Matrix:
    """A number or expression times a matrix."""
    if not isinstance(factor, Quantity) or factor.unit or factor.percent or factor.degrees:
        raise ExpressionError("a matrix is multiplied by a number only")
    return _entrywise(lambda entry: factor.expression * entry, matrix)


def added(one: Matrix, other: Matrix, sign: int) -> Matrix:
    """The sum of two matrices of one size, or the difference."""
    if [len(row) for row in one.rows] != [len(row) for row in other.rows]:
        raise ExpressionError("two matrices are not of one size")
    return _entrywise(lambda left, right: left + sign * right, one, other)


def transposed(matrix: Matrix) -> Matrix:
    """Rows as columns."""
    return Matrix(tuple(zip(*matrix.rows, strict=True)))


def inverted(matrix: Matrix) -> Matrix:
    """ExpressionError if it is no small square of expressions, or has no inverse."""
    import sympy

    rows = [[_entry(lambda entry: entry, (one,)).expression for one in row] for row in matrix.rows]
    if (
        len(rows) > _MAX_INVERTED
        or len(rows) != len(rows[0])
        or (square := sympy.Matrix(rows)).det().is_zero is not False
    ):
        raise ExpressionError("a matrix without an inverse, or too large a one")
    return Matrix(tuple(tuple(map(Quantity, row)) for row in square.inv().tolist()))


def _entrywise(what: Callable[..., Any], *matrices: Matrix) -> Matrix:
    return Matrix(
        tuple(
            tuple(_entry(what, entries) for entries in zip(*rows, strict=True))
            for rows in zip(*(matrix.rows for matrix in matrices), strict=True)
        )
    )


def _entry(what: Callable[..., Any], entries: tuple[Value, ...]) -> Quantity:
    numbers = [one for one in entries if isinstance(one, Quantity)]
    if len(numbers) < len(entries):
        raise ExpressionError("a matrix to calculate with holds expressions only")
    exact = all(one.digits is None for one in numbers)
    return Quantity(what(*(one.expression for one in numbers)), None if exact else 0)


def components(value: Value, size: int) -> tuple[Value, ...] | None:
    """`2i + 3j` as the components of a vector of that size, also with hats or arrows; None if it is no such sum."""
    import sympy

    if not isinstance(value, Quantity) or value.unit or value.percent or size not in (2, 3):
        return None
    expression = sympy.expand(value.expression.subs(sympy.I, sympy.Symbol("i", real=True)))
    for names in _UNIT_VECTORS:
        vectors = [sympy.Symbol(name, real=True) for name in names[:size]]
        parts = [expression.coeff(vector) for vector in vectors]
        whole = sum(part * vector for part, vector in zip(parts, vectors, strict=True))
        if sympy.expand(expression - whole).is_zero and any(expression.has(vector) for vector in vectors):
            return tuple(Quantity(part, value.digits) for part in parts)
    return None


def every_sign(value: Sequence) -> Value:
    """`(\\pm 1, 0)` as the list of (1, 0) and (-1, 0); what has no such item as it is."""
    choices = [
        item.items if isinstance(item, Sequence) and item.kind == "list" and item.connector == "," else (item,)
        for item in value.items
    ]
    tuples = [Sequence("tuple", items) for items in product(*choices)]
    return value if len(tuples) < 2 or len(tuples) > _MAX_TUPLES else Sequence("list", tuple(tuples))


def by_name(items: tuple[Value, ...]) -> tuple[Value, ...]:
    """`y = 1, x = 2` in the order of x, y, z; anything else as it stands."""
    names = [
        item.left.expression.name
        for item in items
        if isinstance(item, Relation) and isinstance(item.left, Quantity) and item.left.expression.is_Symbol
    ]
    if len(names) < len(items) or sorted(names) not in (["x", "y"], ["x", "y", "z"], ["a", "b"], ["a", "b", "c"]):
        return items
    return tuple(item for _, item in sorted(zip(names, items, strict=True), key=lambda pair: pair[0]))
