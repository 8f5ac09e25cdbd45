"""Python values as JSON text that says their types: how results leave the sandbox.

`null`, `true`, `false` and strings are themselves; all else is `[tag, ...]`: `["i", "-ff"]` an int (hexadecimal),
`["f", "0x1.8p+1"]` a float, `["c", re, im]`, `["y", "00ff"]` bytes, `["l", items]`, `["t", items]`, `["e", items]`
a set, `["z", items]` a frozenset, `["d", [[key, value], …]]`, `["o", "Name"]` anything else, which equals nothing.

Subclasses are read through the base class's own methods, so what they override does not matter.
"""

from __future__ import annotations

from _json import encode_basestring_ascii as _quote  # json is slow to import
from typing import Any

_MAX_NODES = 200_000
_MAX_DEPTH = 60

_BASES = (bool, int, float, str, list, tuple, dict, set, frozenset, bytes, bytearray, complex)


class TooLargeError(Exception):
    """A value of too many parts."""


def base_of(value: object, *, _type: Any = type, _bases: tuple[type, ...] = _BASES) -> Any:
    """The plain type a value is or derives from; None if it is of no plain type."""
    mro = _type.__dict__["__mro__"].__get__(_type(value))
    for base in _bases:
        if base in mro:
            return base
    return None


def encode(value: Any, depth: int = 0, budget: list[int] | None = None) -> str:
    """JSON text of a value; TooLargeError if it has too many parts."""
    budget = [_MAX_NODES] if budget is None else budget
    budget[0] -= 1
    if budget[0] < 0:
        raise TooLargeError("the value has too many parts")
    if value is None:
        return "null"
    base = base_of(value)
    if base is bool:
        return "true" if value is True else "false"
    if base is str:
        return _quote(str.__str__(value))
    if base is None or depth > _MAX_DEPTH:
        return f'["o",{_quote(str.__str__(type(value).__name__)[:100])}]'
    return _encode_tagged(value, base, depth + 1, budget)


def _encode_tagged(value: Any, base: Any, depth: int, budget: list[int]) -> str:
    if base is int:
        return f'["i","{int.__format__(value, "x")}"]'
    if base is float:
        return f'["f","{float.hex(value)}"]'
    if base is complex:
        return f'["c","{float.hex(complex.real.__get__(value))}","{float.hex(complex.imag.__get__(value))}"]'
    if base in (bytes, bytearray):
        return f'["y","{base.hex(value)}"]'
    if base is dict:
        pairs = [f"[{encode(k, depth, budget)},{encode(v, depth, budget)}]" for k, v in dict.items(value)]
        return f'["d",[{",".join(pairs)}]]'
    tag = {list: "l", tuple: "t", set: "e", frozenset: "z"}[base]
    items = [encode(item, depth, budget) for item in base.__iter__(value)]
    return f'["{tag}",[{",".join(items)}]]'


def plain(value: Any, depth: int = 0) -> Any:
    """A value with subclasses of plain types replaced by the types themselves; other objects stay what they are."""
    base = base_of(value)
    if base is None or base is bool or depth > _MAX_DEPTH:
        return value
    if base is str:
        return str.__str__(value)
    if base is int:
        return int.__index__(value)
    if base is float:
        return float.__float__(value)
    if base is complex:
        return complex(complex.real.__get__(value), complex.imag.__get__(value))
    if base in (bytes, bytearray):
        return base(base.__add__(value, b""))
    if base is dict:
        return {plain(k, depth + 1): plain(v, depth + 1) for k, v in dict.items(value)}
    return base(plain(item, depth + 1) for item in base.__iter__(value))
