"""Python values as JSON text that says their types: how results leave the sandbox.

`null`, `true`, `false` and strings are themselves; all else is `[tag, ...]`: `["i", "-ff"]` an int (hexadecimal),
`["f", "0x1.8p+1"]` a float, `["h", "e" or "f", hex]` a NumPy float of 16 or 32 bits, `["c", re, im]`, `["n", "0.5"]`
a Decimal, `["q", "1", "2"]` a Fraction (hexadecimal), `["y", "00ff"]` bytes, `["l", items]`, `["t", items]`,
`["e", items]` a set, `["z", items]` a frozenset, `["d", [[key, value], …]]`, `["o", "Name"]` anything else, which
equals nothing.

Subclasses are read through the base class's own methods, so what they override does not matter. Objects of the
standard library and NumPy that Python's `==` finds equal to plain data (views of dicts, UserList, scalars) are sent as
that data.
"""

from __future__ import annotations

from _json import encode_basestring_ascii as _quote  # json is slow to import
from collections.abc import Callable
from typing import Any

MAX_PARTS = 200_000
_MAX_DEPTH = 100

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
    """JSON text of a value; TooLargeError if it has more parts than `budget[0]`, which is counted down."""
    budget = [MAX_PARTS] if budget is None else budget
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
    if base is None and depth <= _MAX_DEPTH and (standard := as_standard(value)) is not None:
        return standard if type(standard) is str else encode(standard[0], depth + 1, budget)
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


def _scalar(value: Any) -> Any:
    """A NumPy scalar: small floats as such, as NumPy compares in their width, the others as Python's own."""
    item = value.item()
    width = {"float16": "e", "float32": "f"}.get(type(value).__name__)
    if width is not None:
        return f'["h","{width}","{float.hex(item)}"]'
    return (item,) if base_of(item) is not None else None


_STANDARD: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("fractions", "Fraction"): lambda v: f'["q","{v.numerator:x}","{v.denominator:x}"]',
    ("decimal", "Decimal"): lambda v: f'["n",{_quote(str(v))}]',
    ("numpy", "generic"): _scalar,
    ("builtins", "dict_keys"): lambda v: (set(v),),
    ("builtins", "dict_items"): lambda v: (set(v),),
    ("builtins", "mappingproxy"): lambda v: (dict(v),),
    ("builtins", "memoryview"): lambda v: (v.tobytes(),),
    ("collections", "ChainMap"): lambda v: (dict(v),),
    ("collections", "UserDict"): lambda v: (v.data,),
    ("collections", "UserList"): lambda v: (v.data,),
    ("collections", "UserString"): lambda v: (v.data,),
}


def as_standard(value: Any) -> Any:
    """The encoded text of a number of the standard library or NumPy, `(data,)` that `==` finds it equal to, None.

    Found by the names of its classes, as nothing is imported for it: who takes such a name can say but a value.
    """
    for kind in type.__dict__["__mro__"].__get__(type(value)):
        read = _STANDARD.get((kind.__module__, kind.__qualname__))
        if read is not None:
            return read(value)
    return None


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
