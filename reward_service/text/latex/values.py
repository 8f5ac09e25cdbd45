"""What an answer can be. Expressions in here are sympy's; `Any` stands for them, as sympy is imported late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number or expression."""

    expression: Any
    digits: int | None = None
    """How many significant digits a decimal was given with; None for what is exact, 0 for a term with decimals."""
    unit: str = ""
    percent: bool = False
    degrees: bool = False
    """A degree sign stands behind it; the expression is in degrees."""
    base: int | None = None
    compound: bool = False
    """It was written as an amount of several units, `1 h 30 min`; the number alone does not say that."""


@dataclass(frozen=True, slots=True)
class Words:
    """A text, in lower case where case means nothing."""

    text: str


@dataclass(frozen=True, slots=True)
class Sequence:
    """Several values: `1, 2` (list), `(1, 2)` (tuple), `\\{1, 2\\}` (set), `[1, 2, 3]` (square), `1:2` (ratio)."""

    kind: Literal["list", "tuple", "set", "square", "ratio"]
    items: tuple[Value, ...]
    connector: str = ","


@dataclass(frozen=True, slots=True)
class Region:
    """A set of real numbers that is not written as a list of them; `shape` is a sympy Set."""

    shape: Any


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of values."""

    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """`left` stands to `right` as the sign says: one of = != < <= > >= in."""

    left: Value
    sign: str
    right: Value


@dataclass(frozen=True, slots=True)
class Chain:
    """`a < b <= c`: all of these hold."""

    relations: tuple[Relation, ...]


Value = Quantity | Words | Sequence | Region | Matrix | Relation | Chain
