"""What stands in one process for an object of the other, and what may be done to it there."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

FROM_THERE = "_of_the_other_side"
"""The attribute that holds the line to the other side and the number that the object has there."""
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, /, *args, **kwargs: target(*args, **kwargs),
    "getattr": getattr, "setattr": setattr, "delattr": delattr,
    "enter": lambda it: type(it).__enter__(it), "exit": lambda it, *error: type(it).__exit__(it, *error),
    "await": lambda it: __import__("asyncio").run(it),
    "copy": lambda it: __import__("copy").copy(it), "deepcopy": lambda it: __import__("copy").deepcopy(it),
}  # fmt: skip
_WORDS = "len iter next str repr hash bool int float complex round reversed format"
_UNARY = tuple(_WORDS.split())
_MATH = ("trunc", "floor", "ceil")
_ALONE = ("neg", "pos", "abs", "invert", "index", "getitem", "setitem", "delitem")
_SIGNS = "add sub mul truediv floordiv mod pow matmul lshift rshift and or xor"
_WITH_ANOTHER = tuple(_SIGNS.split())
_IN_PLACE = tuple(f"i{name}" for name in _WITH_ANOTHER)
_COMPARED = ("lt", "le", "gt", "ge", "contains")
OPERATIONS |= {name: getattr(builtins, name) for name in _UNARY}
OPERATIONS |= {name: getattr(math, name) for name in _MATH}
OPERATIONS |= {
    name: getattr(operator, f"__{name}__") for name in (*_ALONE, *_WITH_ANOTHER, *_IN_PLACE, *_COMPARED, "eq")
}
OPERATIONS |= {"isinstance": isinstance, "issubclass": issubclass}


def there(value: Any) -> tuple[Any, int]:
    """The line to the other side, and the number that the object has there."""
    return object.__getattribute__(value, FROM_THERE)  # type: ignore[no-any-return]


def number_of(remote: Remote) -> int:
    """The number that an object of the other side has there."""
    return there(remote)[1]


def is_from_there(error: BaseException) -> bool:
    """Whether an exception was raised by the other side."""
    return FROM_THERE in error.__dict__


def get_attribute(self: Any, name: str) -> Any:
    """An attribute, from the other side."""
    return there(self)[0].ask("getattr", self, name)


class Remote:
    """Stands for an object of the other side; operators and attributes are asked for there."""

    __slots__ = (FROM_THERE, "_classes_there")

    def __init__(self, peer: Any, number: int, classes: Iterable[int]) -> None:
        object.__setattr__(self, FROM_THERE, (peer, number))
        object.__setattr__(self, "_classes_there", frozenset(classes))

    __getattr__ = get_attribute

    def __setattr__(self, name: str, value: Any) -> None:
        there(self)[0].ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        there(self)[0].ask("delattr", self, name)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return there(self)[0].ask("call", self, *args, **kwargs)

    def __eq__(self, other: object) -> bool:
        peer, _ = there(self)
        if self is other or not peer.may_operate(self, other):
            return self is other
        return peer.equal(self, other) is True

    def __hash__(self) -> int:
        return hash(there(self)[0].ask("hash", self))

    def __contains__(self, item: Any) -> bool:
        peer, _ = there(self)
        if peer.may_operate(self, item):
            return bool(peer.ask("contains", self, item))
        return any(item is one or item == one for one in self)  # type: ignore[attr-defined]

    def __instancecheck__(self, instance: Any) -> bool:
        return there(self)[0].ask("isinstance", instance, self) is True

    def __subclasscheck__(self, subclass: Any) -> bool:
        return there(self)[0].ask("issubclass", subclass, self) is True

    def __deepcopy__(self, memo: Any) -> Any:
        return there(self)[0].ask("deepcopy", self)


def classes_of(remote: Remote) -> frozenset[int]:
    """The numbers of the classes of an object of the other side, as that says."""
    return object.__getattribute__(remote, "_classes_there")  # type: ignore[no-any-return]


def _asks(operation: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any) -> Any:
        return there(self)[0].ask(operation, self, *args)

    return method


def _operates(operation: str, *, reflected: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Any, other: Any) -> Any:
        peer, _ = there(self)
        if not peer.may_operate(self, other):
            return NotImplemented
        return peer.ask(operation, other, self) if reflected else peer.ask(operation, self, other)

    return method


setattr(Remote, "__doc__", property(lambda self: get_attribute(self, "__doc__")))  # noqa: B010
for _name in ({*_UNARY} - {"hash"}) | {*_MATH, *_ALONE, "enter", "exit", "copy"}:
    setattr(Remote, f"__{_name}__", _asks(_name))
for _name in (*_WITH_ANOTHER, *_IN_PLACE, "lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _operates(_name))
for _name in _WITH_ANOTHER:
    setattr(Remote, f"__r{_name}__", _operates(_name, reflected=True))


_ALSO: dict[type, type] = {}


def also_remote(base: Any) -> Any:
    """Plain data of the other side whose class has more to it: a named tuple, an IntEnum, a defaultdict."""
    if base not in _ALSO:
        space: dict[str, Any] = {
            "__getattr__": get_attribute,
            "__copy__": base,
            "__deepcopy__": lambda it, memo: base(it),
        }
        space |= {f"__{name}__": _asks(name) for name in ("str", "repr", "format")}
        if base is dict:
            space["__missing__"] = _asks("getitem")
        _ALSO[base] = type(base.__name__, (base,), space)
    return _ALSO[base]
