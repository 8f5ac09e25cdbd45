"""A test in a process of its own, beside another one that has the solution; only plain values come from there.

The test's code is in no process that has had the solution in it: this one fetches it from the worker outside.
"""

from __future__ import annotations

import io
import marshal
import os
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from reward_service.sandbox.inside import values
from reward_service.sandbox.inside.contents import OtherSideGoneError
from reward_service.sandbox.inside.peer import Peer
from reward_service.sandbox.inside.remote import Remote, classes_of, is_from_there, number_of

FROM_PEER, TO_PEER, CONTROL_IN, CONTROL_OUT = 4, 5, 6, 7
"""Descriptors; the last two are the judge's alone."""
_PRIVATE = ("_", "gi_", "cr_", "ag_", "f_", "tb_", "co_", "func_")
"""How attributes begin that lead to frames, code and namespaces."""
_OF_ONE = ("call", "getattr", "setattr", "delattr")
_MAX_HELD = 200


class _Tests(Peer):
    """The tests' end of the line, which lets the solution do no more than it may."""

    trusted = False

    def __init__(self, max_parts: int) -> None:
        super().__init__(open(FROM_PEER, "rb"), open(TO_PEER, "wb"), max_parts)  # noqa: SIM115
        self._named: set[int] = set()

    def named(self, name: str) -> Any:
        """What the solution has under this name; operators of a class that tests name are the solution's to define."""
        value = self.ask("name", name)
        if type(value) is Remote:
            self._named.add(number_of(value))
        return value

    def perform(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        # a type of Python's own, called here with the right arguments, would make an object that equals everything
        if not any(self.is_lent(arg) for arg in (args[:1] if operation in _OF_ONE else args[:2])):
            raise AttributeError("tests do not lend this")
        if operation.endswith("attr"):
            _check_attribute(operation, *args[:2])
        if operation == "eq":
            return args[0] == args[1] if not any(type(arg) is Remote for arg in args) else args[0] is args[1]
        return super().perform(operation, args, kwargs)

    def hear(self, printed: str) -> None:
        if printed:
            sys.stdout.write(str(printed))

    def may_operate(self, remote: Any, other: Any) -> bool:
        return type(other) is Remote or not self._named.isdisjoint(classes_of(remote))

    def equal(self, remote: Any, other: Any) -> bool:
        return super().equal(remote, other) and all(self._is_honest(one, set()) for one in (remote, other))

    def _is_honest(self, value: Any, seen: set[int]) -> bool:
        """Whether no object in a value, nor what it holds, equals something that nothing equals."""
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if isinstance(value, list | tuple | set | frozenset):
            return all(self._is_honest(item, seen) for item in value)
        if type(value) is not Remote or id(value) in seen or len(seen) > _MAX_HELD:
            return True
        seen.add(id(value))
        return self.ask("eq", value, object()) is not True and self._is_honest(self.ask("held", value), seen)


def _check_attribute(operation: str, target: Any, name: Any) -> None:
    if type(name) is not str or name.startswith(_PRIVATE):
        raise AttributeError(f"tests do not show their {name!r:.50}")
    if operation != "getattr" and (
        isinstance(target, type | types.FunctionType | types.ModuleType) or callable(getattr(type(target), name, None))
    ):
        raise AttributeError(f"tests do not let {name!r:.50} be changed")


class _Solution(Peer):
    """The solution's end of the line."""

    def __init__(self, module: types.ModuleType, max_parts: int) -> None:
        super().__init__(open(FROM_PEER, "rb"), open(TO_PEER, "wb"), max_parts)  # noqa: SIM115
        self._module = module
        self._printed = io.BytesIO()
        self._stdout = sys.stdout = io.TextIOWrapper(self._printed, encoding="utf-8", errors="replace")

    def perform(self, operation: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        if operation == "name":
            value = getattr(self._module, args[0])
            if isinstance(value, type):
                self.kept = (*self.kept, value)
            return value
        if operation == "setname":
            setattr(self._module, *args)
            return None
        return _held(args[0]) if operation == "held" else super().perform(operation, args, kwargs)

    def said(self) -> str:
        self._stdout.flush()
        said = self._printed.getvalue().decode("utf-8", "replace")
        self._printed.seek(0)
        self._printed.truncate()
        return said


def _held(value: Any) -> list[Any]:
    """What an object holds in its attributes."""
    slots = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())]
    return [*getattr(value, "__dict__", {}).values(), *(getattr(value, name, None) for name in slots)]


def serve(module: types.ModuleType, max_parts: int) -> None:
    """The solution's process: does what the tests ask for, until they end."""
    with suppress(OtherSideGoneError):
        _Solution(module, max_parts).serve()


class _Module(types.ModuleType):
    """What `import solution` gives in tests."""

    def __init__(self, tests: _Tests) -> None:
        super().__init__("solution")
        self.__dict__["_tests"] = tests

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["_tests"].named(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__["_tests"].ask("setname", name, value)


def _fetch(index: int) -> dict[str, Any]:
    """The test, from the worker outside."""
    os.write(CONTROL_OUT, f'["want",{index}]\n'.encode())
    with open(CONTROL_IN, "rb") as control:
        at, test = marshal.loads(control.read(int.from_bytes(control.read(8), "big")))
    os.close(CONTROL_OUT)
    assert at == index, "another test's code"
    return dict(test)


def judge(index: int, max_parts: int, say: Callable[..., None]) -> None:
    """Runs a test against the solution in the other process, and says what came of it."""
    test = _fetch(index)
    tests = _Tests(max_parts)
    try:
        _run(test, tests, say)
    except OtherSideGoneError:
        return
    except ImportError as error:
        if is_from_there(error) or error.name == "solution":  # which lacks what the test imports from it
            raise
        say("no_test", values.encode(f"{type(error).__name__}: {error}"[:200]))


def _run(test: dict[str, Any], tests: _Tests, say: Callable[..., None]) -> None:
    if "unittest" in test["code"]:
        import unittest

        unittest.main = lambda *args, **kwargs: None  # type: ignore[assignment]  # its cases are run one by one
    tests.ask("bool", None)  # the solution is there, or has failed to be
    module = sys.modules["solution"] = _Module(tests)
    space: dict[str, Any] = {"__name__": "tests"}
    exec(test["imports"], space)
    found = {}
    for name in test["solution"]:
        try:
            found[name] = tests.named(name)
        except AttributeError:
            continue
    module.__dict__["__all__"] = list(found)
    space |= found
    if test["entry"]:
        space["candidate"] = eval(test["entry"], dict(found))
    exec(compile(test["setup"], "<setup>", "exec", dont_inherit=True), space)
    if test["unit"] == "value":
        value = eval(compile(test["code"], "<test>", "eval", dont_inherit=True), space)
        say("value", values.encode(value, budget=[tests.max_parts]))
    elif test["unit"] == "truth":
        say("value", values.encode(bool(eval(compile(test["code"], "<test>", "eval", dont_inherit=True), space))))
    else:
        exec(compile(test["code"], "<test>", "exec", dont_inherit=True), space)
        run_unit(test["unit"], test["name"], space)
        say("passed")


def run_unit(kind: str, name: Any, space: dict[str, Any]) -> None:
    """The part of the test code that is one test; a script has run by itself."""
    if kind == "check":
        space[name](space["candidate"])
    elif kind == "function":
        space[name]()
    elif kind == "case":
        _run_case(space[name[0]], name[1])


def _run_case(case: Any, method: str) -> None:
    """One method of a unittest.TestCase, without unittest's own bookkeeping of results."""
    test = case(method)
    case.setUpClass()
    try:
        test.setUp()
        try:
            getattr(test, method)()
        finally:
            test.tearDown()
            test.doCleanups()
    finally:
        case.tearDownClass()
