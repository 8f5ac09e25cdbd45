"""Reading JSON that msgspec refuses, slowly: to find out which item is at fault, or which key is there twice."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

_MAX_DIGITS: Final = 4000
"""Python reads no integer of more than 4300."""


class DuplicateKeyError(ValueError):
    """An object has a key twice."""


class _Unreadable(str):
    """Stands for a number, and says what is wrong with it."""


def read(body: bytes) -> Any:
    """The value of a JSON text; numbers and texts that cannot be read are found by `problem_of`.

    Raises:
        DuplicateKeyError: An object names a key twice.
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    text = body.decode("utf-8", "surrogateescape")  # bytes that are no UTF-8 become halves of surrogate pairs
    return json.loads(
        text,
        object_pairs_hook=_single,
        parse_int=_integer,
        parse_float=_number,
        parse_constant=_constant,
    )


def problem_of(item: Any) -> str:
    """What cannot be read in an item; empty if all can."""
    try:
        if problem := _find(item):
            return problem
        msgspec.json.encode(item)
    except UnicodeEncodeError:
        return "a text holds half of a surrogate pair, or bytes that are not UTF-8"
    except RecursionError:
        return "it is nested too deeply"
    return ""


def id_of(item: Any) -> str:
    """The item's identifier, as far as it can be read."""
    found = item.get("id", "") if isinstance(item, dict) else ""
    return found.encode("utf-8", "replace").decode() if isinstance(found, str) else ""


def _find(value: Any) -> str:
    if isinstance(value, _Unreadable):
        return str(value)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if type(part) in (_Unreadable, dict, list) and (problem := _find(part)):  # most are none: no call for them
            return problem
    return ""


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DuplicateKeyError(f"an object has the key {twice!r:.100} twice; send it once")
    return found


def _integer(digits: str) -> int | _Unreadable:
    if len(digits) > _MAX_DIGITS:
        return _Unreadable(f"an integer has {len(digits.lstrip('-'))} digits, and {_MAX_DIGITS} are read at most")
    return int(digits)


def _number(text: str) -> float | _Unreadable:
    value = float(text)
    return value if abs(value) < float("inf") else _Unreadable(f"the number {text:.40} is out of range")


def _constant(name: str) -> _Unreadable:
    """Python's encoder writes these for numbers that JSON does not have: a table's missing label is one."""
    return _Unreadable(f"{name} is no number in JSON")
