"""Compares what came out of the sandbox with what was expected, without ever building objects of a stranger's choosing.

The encoded value (`reward_service.sandbox.inside.values`) is walked along the expected one, whose size is trusted:
lengths are compared before anything is put into a set or dict, so keys that collide on purpose cost nothing.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeAlias

_MAX_KEY_PARTS = 1000
_MAX_DIGITS = 100_000
"""Of a fraction or decimal: reducing takes quadratic time."""
_MALFORMED = (TypeError, ValueError, LookupError, RecursionError, ArithmeticError, struct.error)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """How far a float may be off where a float is expected, by default in its last digits; all else is exact."""

    rel: float = 1e-9
    abs: float = 1e-12
    lists_are_tuples: bool = False
    """What JSON wrote as a list may be a list or a tuple."""


class MalformedValueError(Exception):
    """The text is not an encoded value."""


def parse(text: str | bytes) -> Any:
    """The JSON tree of an encoded value."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedValueError(f"not an encoded value: {type(error).__name__}") from None


def matches(node: Any, expected: object, tolerance: Tolerance) -> bool:
    """Whether the encoded value `node` equals `expected`, as Python's `==` says it, floats within the tolerance.

    A NaN equals a NaN. MalformedValueError if `node` is no encoded value.
    """
    try:
        return _matches(node, expected, tolerance)
    except _MALFORMED as error:
        raise MalformedValueError(f"not an encoded value: {error!r:.100}") from None


def is_true(node: Any) -> bool:
    """What `bool()` says of an encoded value; an object of no plain type is true, whatever its class says.

    MalformedValueError if `node` is no encoded value.
    """
    try:
        return _is_true(node)
    except _MALFORMED as error:
        raise MalformedValueError(f"not an encoded value: {error!r:.100}") from None


def _is_true(node: Any) -> bool:
    if node is None or isinstance(node, bool | str):
        return bool(node)
    if node[0] in _NUMBERS or node[0] == "h":
        return _number(node) != 0
    return bool(node[1])


def _matches(node: Any, expected: object, tolerance: Tolerance) -> bool:
    if node is None or isinstance(node, str):
        return node == expected
    if isinstance(node, bool) or node[0] in _NUMBERS:
        return isinstance(expected, int | float | complex) and _close(_number(node), expected, tolerance)
    if node[0] == "h":
        return isinstance(expected, int | float) and _close(_number(node), _rounded(expected, node[1]), tolerance)
    tag, content = node[0], node[1]
    if tag == "y":
        return isinstance(expected, bytes) and content == expected.hex()
    if tag in ("l", "t"):
        return _matches_sequence(tag, content, expected, tolerance)
    if tag in ("e", "z"):
        fits = isinstance(expected, set | frozenset) and len(content) == len(expected)
        return fits and {_key(item) for item in content} == expected
    if tag == "d":
        return isinstance(expected, dict) and _matches_dict(content, expected, tolerance)
    if tag == "o":
        return False
    raise ValueError("unknown tag")


def _matches_sequence(tag: str, items: Sequence[Any], expected: object, tolerance: Tolerance) -> bool:
    kinds: tuple[type, ...] = (list,) if tag == "l" else (tuple,)
    if tolerance.lists_are_tuples:
        kinds = (list, tuple)
    if not isinstance(expected, kinds) or not isinstance(expected, list | tuple) or len(items) != len(expected):
        return False
    return all(_matches(item, other, tolerance) for item, other in zip(items, expected, strict=True))


def _matches_dict(pairs: Sequence[Any], expected: dict[Any, Any], tolerance: Tolerance) -> bool:
    if len(pairs) != len(expected):
        return False
    found = {_key(key): value for key, value in pairs}
    if len(found) != len(expected):
        return False
    return all(key in found and _matches(found[key], value, tolerance) for key, value in expected.items())


_Number: TypeAlias = int | float | complex | Decimal | Fraction
_NUMBERS = frozenset("ifcnq")


def _number(node: Any) -> _Number:
    if isinstance(node, bool):
        return node
    tag, text = node[0], node[1]
    if tag == "i":
        return int(text, 16)
    if tag in ("n", "q") and len(text) + len(node[-1]) > _MAX_DIGITS:
        raise ValueError("a number of too many digits")
    if tag == "n":
        return Decimal(text)
    if tag == "q":
        return Fraction(int(text, 16), int(node[2], 16))
    if tag == "c":
        return complex(float.fromhex(text), float.fromhex(node[2]))
    return float.fromhex(node[2] if tag == "h" else text)


def _rounded(number: float, width: str) -> float:
    """As NumPy compares a Python number with a float of 16 or 32 bits: in that width."""
    return float(struct.unpack(width, struct.pack(width, number))[0])


def _close(value: _Number, expected: complex, tolerance: Tolerance) -> bool:
    if value == expected:
        return True
    if not isinstance(value, float | complex) or not isinstance(expected, float | complex):
        return False  # what is no float has no rounding: off by any amount is wrong
    if isinstance(value, complex) or isinstance(expected, complex):
        return abs(value - expected) <= max(tolerance.abs, tolerance.rel * abs(expected))
    if math.isnan(value) or math.isnan(expected):
        return math.isnan(value) and math.isnan(expected)
    return math.isclose(value, expected, rel_tol=tolerance.rel, abs_tol=tolerance.abs)


_HASHABLE: dict[str, Callable[[Any], Hashable]] = {"t": tuple, "z": frozenset}


def _key(node: Any, budget: list[int] | None = None) -> Hashable:
    """An encoded value as a member of a set or a key."""
    budget = [_MAX_KEY_PARTS] if budget is None else budget
    budget[0] -= 1
    if budget[0] < 0:
        raise ValueError("a key of too many parts")
    if node is None or isinstance(node, bool | str):
        return node
    if node[0] in _NUMBERS or node[0] == "h":
        return _number(node)
    if node[0] == "y":
        return bytes.fromhex(node[1])
    if node[0] == "o":
        return object()  # equals nothing
    return _HASHABLE[node[0]](_key(item, budget) for item in node[1])
