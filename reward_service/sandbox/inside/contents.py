"""Values on the line between two processes: plain data as JSON, all else as a number of the process that has it."""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable
from typing import Any

from reward_service.sandbox.inside.remote import FROM_THERE, Remote, also_remote, there
from reward_service.sandbox.inside.values import TooLargeError, base_of

_SMALL = 1 << 53
_MAX_DEPTH = 150
_MAX_HELD_PARTS = 2000
_OURS = 4
"""References to a container that are not the test's or the solution's: the table's, two slices', the argument."""
_WRONG = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
_POWERFUL = frozenset({"eval", "exec", "compile", "open", "input", "breakpoint", "__import__"})
"""Builtins that tests are not given by a solution."""
_VALUES: dict[tuple[str, str], Callable[[Any], tuple[Any, ...]]] = {
    ("collections", "Counter"): lambda v: (dict(v),),
    ("collections", "OrderedDict"): lambda v: (list(v.items()),),
    ("collections", "deque"): lambda v: (list(v), v.maxlen),
    ("builtins", "range"): lambda v: (v.start, v.stop, v.step),
    ("builtins", "slice"): lambda v: (v.start, v.stop, v.step),
    ("builtins", "dict_keys"): lambda v: (list(v),),
    ("builtins", "dict_values"): lambda v: (list(v),),
    ("builtins", "dict_items"): lambda v: (list(v),),
    ("decimal", "Decimal"): lambda v: (str(v),),
    ("fractions", "Fraction"): lambda v: (v.numerator, v.denominator),
    ("datetime", "date"): lambda v: (v.year, v.month, v.day),
    ("datetime", "datetime"): lambda v: ((v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.tzinfo)),
    ("datetime", "time"): lambda v: (v.hour, v.minute, v.second, v.microsecond, v.tzinfo),
    ("datetime", "timedelta"): lambda v: (v.days, v.seconds, v.microseconds),
    ("datetime", "timezone"): lambda v: (v.utcoffset(None),),
    ("uuid", "UUID"): lambda v: (v.hex,),
    ("pathlib", "PosixPath"): lambda v: (str(v),),
    ("pathlib", "PurePosixPath"): lambda v: (str(v),),
}
"""Values of the standard library that travel as the arguments that make them anew."""
_VIEWS: dict[str, Callable[[Any], Any]] = {
    "dict_keys": lambda items: dict.fromkeys(items).keys(),
    "dict_values": list,
    "dict_items": set,
}

_ARRAYS = "biufcSUMm"
"""Kinds of NumPy arrays that travel as their bytes."""


class OtherSideGoneError(BaseException):
    """The other process has ended, or says what cannot be understood; no Exception, so that no test swallows it."""


async def _awaited(peer: Any, number: int) -> Any:
    """What a coroutine of the other side comes to, there."""
    return peer.ask("await", peer.remote(number, []))


class Contents:
    """The values of one question and its answer, with the containers among them, which both sides know by number."""

    def __init__(self, peer: Any) -> None:
        self._peer = peer
        self._left = peer.max_parts
        self._containers: list[Any] = []
        self._contents: list[Any] = []
        self._known: dict[int, int] = {}
        self._arguments = 0

    def pack(self, value: Any, depth: int = 0) -> Any:
        """A value as JSON says it: null, true, false, texts and small integers as themselves, the rest tagged."""
        self._count(1)
        if value is None or value is True or value is False:
            return value
        base: Any = base_of(value)
        if base is None or depth > _MAX_DEPTH:
            return self._pack_object(value, depth)
        if type(value) is base:
            return self._pack_plain(value, base, depth)
        if FROM_THERE in getattr(value, "__dict__", ()):
            return ["m", value.__dict__[FROM_THERE][1]]
        if _names_of(value) in _VALUES:
            return self._pack_object(value, depth)
        handle = self._object(value)
        return (
            handle if isinstance(value, self._peer.kept) else ["s", *handle[1:], self._pack_plain(value, base, depth)]
        )

    def _count(self, parts: int) -> None:
        self._left -= parts
        if self._left < 0:
            raise TooLargeError("the value has too many parts")

    def _pack_plain(self, value: Any, base: type, depth: int) -> Any:
        if base is str:
            return str.__str__(value)
        if base is int:
            number = int.__index__(value)
            return number if -_SMALL < number < _SMALL else ["i", f"{number:x}"]
        if base is float:
            return ["f", float.hex(value)]
        if base is complex:
            return ["c", complex.real.__get__(value).hex(), complex.imag.__get__(value).hex()]
        if base is bytes:
            return ["y", bytes.hex(value)]
        if base in (tuple, frozenset):
            return ["t" if base is tuple else "z", self._content(value, base, depth)]
        if id(value) in self._known:
            return ["r", self._known[id(value)]]
        number = self._known[id(value)] = len(self._containers)
        self._containers.append(value)
        self._contents.append(None)
        self._contents[number] = self._content(value, base, depth)
        return [base.__name__, number, self._contents[number]]

    def _content(self, value: Any, base: Any, depth: int) -> Any:
        if base is bytearray:
            return bytearray.hex(value)
        if base is dict:
            return [[self.pack(k, depth + 1), self.pack(v, depth + 1)] for k, v in dict.items(value)]
        items = [*base.__iter__(value)]
        if _go_as_they_are(items):  # one look at all of them: tests compare long lists, many times
            self._count(len(items))
            return items
        return [self.pack(item, depth + 1) for item in items]

    def _pack_object(self, value: Any, depth: int) -> Any:
        if type(value) is Remote:
            return ["m", there(value)[1]]
        if isinstance(value, BaseException):
            return self.pack_error(value)
        if isinstance(value, type) and issubclass(value, BaseException):
            return self._pack_error_class(value)
        if isinstance(value, types.ModuleType) and value.__name__ in sys.stdlib_module_names:
            return ["g", value.__name__]
        if isinstance(value, type | types.BuiltinFunctionType) and _is_builtin(value):
            return ["g", "builtins", value.__name__]
        names = _names_of(value)
        if names in _VALUES and depth <= _MAX_DEPTH:
            return ["v", *names, [self.pack(part, depth + 1) for part in _VALUES[names](value)]]
        if type(value) is types.CoroutineType and self._peer.trusted:
            return ["w", self._peer.number_of(value)]
        kinds = {(kind.__module__, kind.__qualname__) for kind in type(value).__mro__}
        if ("numpy", "generic") in kinds:
            return self.pack(value.item(), depth + 1)
        if ("numpy", "ndarray") in kinds and value.dtype.kind in _ARRAYS:
            self._count(value.size)
            return ["a", *self._object(value)[1:], value.dtype.str, list(value.shape), value.tobytes().hex()]
        return self._object(value)

    def _object(self, value: Any) -> list[Any]:
        kinds = type(value).__mro__ if self._peer.trusted else ()  # classes of the tests are not shown
        classes = [self._peer.number_of(kind) for kind in kinds if kind.__module__ != "builtins"]
        return ["h", self._peer.number_of(value), classes]

    def _pack_error_class(self, kind: Any) -> Any:
        if _is_builtin(kind):
            return ["g", "builtins", kind.__name__]
        if FROM_THERE in vars(kind):
            return ["m", vars(kind)[FROM_THERE][1]]
        base = next(one.__name__ for one in kind.__mro__ if _is_builtin(one))
        return ["k", self._peer.number_of(kind), kind.__module__, kind.__name__, base]

    def pack_error(self, error: BaseException) -> Any:
        """An exception as its class and arguments, and the object it is where that is not known there by itself."""
        if FROM_THERE in error.__dict__:
            return ["m", error.__dict__[FROM_THERE][1]]
        packed = self._pack_error_class(type(error))
        try:
            args, text = [self.pack(arg) for arg in error.args], str(error)
        except BaseException:  # arguments of too many parts, a __str__ that raises
            args, text = [], "an exception that cannot be shown"
        return ["x", packed, args, text, self._peer.number_of(error)]

    def unpack(self, node: Any) -> Any:
        """The value that was packed. Whatever is wrong with it ends the conversation."""
        try:
            return self._unpack(node)
        except _WRONG as error:
            raise OtherSideGoneError(f"no value: {type(error).__name__}") from None

    def _unpack(self, node: Any) -> Any:
        if type(node) is not list:
            return node
        tag = node[0]
        if tag in _PLAIN:
            return _PLAIN[tag](*node[1:])
        if tag in ("t", "z"):
            return (tuple if tag == "t" else frozenset)(self._items(node[1]))
        if tag in _CONTAINERS:
            return self._make(tag, node[1], node[2])
        return getattr(self, f"_unpack_{tag}")(*node[1:])

    def _make(self, tag: str, number: int, content: Any) -> Any:
        made = _CONTAINERS[tag]()
        if number != len(self._containers):
            raise ValueError("containers in another order")
        self._known[id(made)] = number
        self._containers.append(made)
        self._contents.append(content)
        self._left -= len(content)
        self._fill(made, content)
        return made

    def _fill(self, made: Any, content: Any) -> None:
        if type(made) is dict:
            made.update([(self._unpack(key), self._unpack(value)) for key, value in content])
        elif type(made) is set:
            made.update(self._items(content))
        elif type(made) is list:
            made += self._items(content)
        else:
            made += bytes.fromhex(content)

    def _items(self, content: list[Any]) -> list[Any]:
        return [self._unpack(item) for item in content] if list in {*map(type, content)} else content

    def _unpack_r(self, number: int) -> Any:
        return self._containers[number]

    def _unpack_m(self, number: int) -> Any:
        return self._peer.own(number)

    def _unpack_h(self, number: int, classes: list[int]) -> Any:
        return self._peer.remote(number, classes)

    def _unpack_w(self, number: int) -> Any:
        return _awaited(self._peer, number)

    def _unpack_s(self, number: int, classes: list[int], plain: Any) -> Any:
        value = self._unpack(plain)
        if base_of(value) is not type(value):
            raise ValueError("no plain data")
        made = also_remote(type(value))(value)
        made.__dict__[FROM_THERE] = (self._peer, number)
        return made

    def _unpack_a(self, number: int, classes: list[int], dtype: str, shape: list[int], data: str) -> Any:
        numpy = sys.modules.get("numpy")
        if numpy is None:  # nobody here knows arrays
            return self._peer.remote(number, classes)
        if numpy.dtype(dtype).kind not in _ARRAYS:
            raise ValueError("an array of objects")
        return numpy.frombuffer(bytes.fromhex(data), dtype).reshape(shape).copy()

    def _unpack_g(self, module: str, name: str | None = None) -> Any:
        if name is None:
            if self._peer.trusted:
                return __import__(module)
            raise ValueError("a module")
        if module != "builtins" or (name in _POWERFUL and not self._peer.trusted):
            raise ValueError("nothing of Python's own")
        return vars(builtins)[name]

    def _unpack_v(self, module: str, name: str, args: list[Any]) -> Any:
        if (module, name) not in _VALUES:
            raise ValueError("no value of the standard library")
        values = [self._unpack(arg) for arg in args]
        if name in _VIEWS:
            return _VIEWS[name](*values)
        return getattr(__import__(module), name)(*values)

    def _unpack_k(self, number: int, module: str, name: str, base: str) -> type[BaseException]:
        known = module.partition(".")[0] in sys.stdlib_module_names
        found = getattr(sys.modules.get(module), name, None) if known else None
        if isinstance(found, type) and issubclass(found, BaseException):
            return found
        nearest = vars(builtins)[base]
        if not (isinstance(nearest, type) and issubclass(nearest, BaseException)):
            raise ValueError("no exception")
        made: type[BaseException] = self._peer.error_class(number, str(name), nearest)
        return made

    def _unpack_x(self, kind: Any, args: list[Any], text: str, number: int) -> BaseException:
        values = [self._unpack(arg) for arg in args]
        made = self._unpack(kind)
        if not (isinstance(made, type) and issubclass(made, BaseException)):
            raise ValueError("no exception")
        try:
            error: BaseException = made(*values)
        except Exception:  # one that takes other arguments than it shows
            error = made.__new__(made)
            error.args = tuple(values) or (text,)
        error.__dict__[FROM_THERE] = (self._peer, number)
        return error

    def end_arguments(self) -> None:
        """What comes from here on is of the answer."""
        self._arguments = len(self._containers)

    def has_few_results(self) -> bool:
        """Whether there are containers in the answer, and not so many that looking at them again and again is slow."""
        return self._arguments < len(self._containers) and self._left > self._peer.max_parts - _MAX_HELD_PARTS

    def are_in_use(self) -> bool:
        """Whether anybody else has one of the containers of the answer: beside this list, this loop, and a parent."""
        results = self._containers[self._arguments :]
        few = [sys.getrefcount(one) <= _OURS + (at > 0) for at, one in enumerate(results)]
        return not all(few)

    def changes(self, *, of_arguments: bool) -> list[Any]:
        """The new contents of the containers of the question, or the answer, that are not what they last were."""
        self._left = self._peer.max_parts
        found = []
        known = len(self._containers)
        for number in range(self._arguments) if of_arguments else range(self._arguments, known):
            container = self._containers[number]
            if type(container) not in _CONTAINERS.values():
                continue  # of a class of its own: the other side has a copy
            content = self._content(container, type(container), 0)
            if content != _shallow(self._contents[number]):
                self._contents[number] = content
                found.append([number, content])
        return found

    def change(self, changes: list[Any]) -> None:
        """Gives containers the contents that they have on the other side."""
        try:
            for number, content in changes:
                container = self._containers[number]
                made = type(container)()
                self._fill(made, content)
                self._contents[number] = content
                container.clear()
                (container.update if isinstance(container, dict | set) else container.extend)(made)
        except _WRONG as error:
            raise OtherSideGoneError(f"no changes: {type(error).__name__}") from None


def _shallow(node: Any) -> Any:
    """A packed content with its containers as mere references, as it is packed when they are known."""
    if type(node) is not list:
        return node
    if len(node) == 3 and type(node[0]) is str and node[0] in _CONTAINERS:
        return ["r", node[1]]
    return [_shallow(item) for item in node] if list in {*map(type, node)} else node


def _go_as_they_are(items: list[Any]) -> bool:
    """Whether JSON says all of them as they are: texts and small integers."""
    kinds = {*map(type, items)}
    return kinds == {str} or (kinds == {int} and -_SMALL < min(items) <= max(items) < _SMALL)


_CONTAINERS: dict[Any, Callable[[], Any]] = {"list": list, "dict": dict, "set": set, "bytearray": bytearray}
_PLAIN: dict[Any, Callable[..., Any]] = {
    "i": lambda text: int(text, 16),
    "f": float.fromhex,
    "c": lambda real, imag: complex(float.fromhex(real), float.fromhex(imag)),
    "y": bytes.fromhex,
}


def _is_builtin(value: Any) -> bool:
    return vars(builtins).get(value.__name__) is value


def _names_of(value: Any) -> tuple[str, str]:
    return (type(value).__module__, type(value).__qualname__)
