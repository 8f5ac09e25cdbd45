"""Pickles of frozen dataclasses that cross doors by the thousand. Standard library only."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)


def pickled_by_fields(kind: Kind) -> Kind:
    """Decorates a frozen dataclass with slots, of two fields or more: its pickles hold the fields' values in order, and
    nothing is checked again when they are read. Dataclasses' own way looks all fields up for each object."""
    names = [each.name for each in fields(kind)]
    values = attrgetter(*names)
    setters = tuple(vars(kind)[name].__set__ for name in names)

    def reduced(one: Any) -> tuple[Any, ...]:
        return _made, (kind, *values(one))

    for name, value in {"__reduce__": reduced, "_setters": setters}.items():
        setattr(kind, name, value)
    return kind


def _made(kind: Any, *values: Any) -> Any:
    one = object.__new__(kind)
    for set_field, value in zip(kind._setters, values, strict=True):
        set_field(one, value)
    return one
