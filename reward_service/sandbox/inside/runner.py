"""One test in a process of its own: loads the solution, runs the test, says what came of it, and is gone.

What is said goes through a private descriptor, each line behind a nonce that is made for this test alone. For tests
whose outcome is judged outside (programs, calls, expressions) a forged line gains nothing: the lie would have to be
the right answer. For general tests it would, so what they use is taken before the solution is loaded and looked at
again afterwards; see `reward_service.sandbox` for what that does not cover.
"""

from __future__ import annotations

import builtins
import os
import resource
import sys
import types
from collections.abc import Callable
from typing import Any

from reward_service.sandbox.inside import values

_GUARDED = ("builtins", "collections", "functools", "itertools", "math", "operator", "unittest", "unittest.case")
_HEAP_TYPE = 1 << 9
_MESSAGE_CHARS = 200


class RefusedError(BaseException):
    """A general test was given something it cannot judge; not an Exception, so that no test swallows it."""


class Verdict:
    """The private descriptor."""

    def __init__(self, fd: int, nonce: str) -> None:
        def say(stage: str, payload: str = "", *, _write: Any = os.write, _view: Any = memoryview) -> None:
            rest = _view(f"{nonce} {stage} {payload}\n".encode())
            while rest:
                rest = rest[_write(fd, rest) :]

        self.say = say


def _message(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException:  # a lying __str__
        text = "an exception that cannot be shown"
    return values.encode(" ".join(text.split())[:_MESSAGE_CHARS])


def set_limits(limits: dict[str, int]) -> None:
    """The limits of this process and all it starts; never above what is allowed already."""
    for name, wanted in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        # processor time ends with a signal that says so, and a second later with one that cannot be ignored
        resource.setrlimit(kind, (value, value + (name == "CPU" and value != hard)))


def run(job: dict[str, Any], test: dict[str, Any], fd: int, nonce: str) -> None:
    """Runs a test to its end; whatever the solution raises is told, nothing is raised."""
    verdict = Verdict(fd, nonce)
    leave = os._exit
    try:
        set_limits(job["limits"])
        sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        for name in [name for name in sys.modules if name.startswith("reward_service")]:
            del sys.modules[name]
        _RUNNERS[test["kind"]](job["code"], test, verdict.say)
    except BaseException as error:
        verdict.say("failed", _message(error))
    leave(0)


def _load(code: str, name: str, say: Callable[..., None]) -> types.ModuleType | None:
    """The solution as a module, or None after telling how it failed."""
    try:
        compiled = compile(code, "<solution>", "exec", dont_inherit=True)
    except BaseException as error:
        say("no_compile", _message(error))
        return None
    say("compiled")
    module = types.ModuleType(name)
    sys.modules[name] = sys.modules["solution"] = module
    try:
        exec(compiled, module.__dict__)
    except BaseException as error:
        if name == "__main__" and isinstance(error, SystemExit) and error.code in (None, 0):
            return module
        say("no_run", _message(error))
        return None
    return module


def _run_program(code: str, test: dict[str, Any], say: Callable[..., None]) -> None:
    """The solution as a script; what it printed is read by the supervisor, and judged outside."""
    stdout = sys.stdout
    module = _load(code, "__main__", say)
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    if "atexit" in sys.modules:
        sys.modules["atexit"]._run_exitfuncs()
    for stream in (sys.stdout, stdout):
        stream.flush()
    if module is not None:
        say("ran")
        say("ended")


def _run_expression(code: str, test: dict[str, Any], say: Callable[..., None]) -> None:
    module = _load(code, "solution", say)
    if module is None:
        return
    say("ran")
    if test["setup"]:
        exec(compile(test["setup"], "<test>", "exec", dont_inherit=True), module.__dict__)
    value = eval(compile(test["expr"], "<test>", "eval", dont_inherit=True), module.__dict__)
    say("value", values.encode(value))


def _run_call(code: str, test: dict[str, Any], say: Callable[..., None]) -> None:
    module = _load(code, "solution", say)
    if module is None:
        return
    say("ran")
    target: Any = module
    for part in test["function"].split("."):
        # `Solution.method` is called on a fresh instance, as programming sites do
        target = getattr(target() if isinstance(target, type) else target, part)
    say("value", values.encode(target(*test["args"], **test["kwargs"])))


def _run_general(code: str, test: dict[str, Any], say: Callable[..., None]) -> None:
    """Test code beside the solution: everything it uses is taken first, and compared afterwards."""
    settrace, setprofile, plain, base_of = sys.settrace, sys.setprofile, values.plain, values.base_of
    compiled = compile(test["code"], "<test>", "exec", dont_inherit=True)
    case_type = None
    if "unittest" in test["code"]:
        import unittest

        case_type = unittest.TestCase
    guard = Guard([sys.modules[name] for name in _GUARDED if name in sys.modules], case_type)
    originals = dict(vars(builtins))
    known = {id(kind) for module in list(sys.modules.values()) for kind in vars(module).values()}
    module = _load(code, "solution", say)
    if module is None:
        return
    say("ran")
    settrace(None)
    setprofile(None)
    guard.restore()
    entry, kind, name = test["entry"], test["unit"], test["name"]
    space = {k: v for k, v in vars(module).items() if k not in originals and not k.startswith("__")}
    space |= {"__name__": "tests", "__builtins__": originals}

    def judged(*args: Any, **kwargs: Any) -> Any:
        value = plain(function(*args, **kwargs))
        made = type(value)
        if base_of(value) is None and made.__flags__ & _HEAP_TYPE and id(made) not in known:
            raise RefusedError(f"the result is of the solution's own class {made.__name__!r:.50}")
        return value

    if entry:
        function = getattr(module, entry)
        # whether instances of the solution's own class are wanted, the reference says: by the name of a class
        space[entry] = space["candidate"] = function if entry[:1].isupper() else judged
    exec(compiled, space)
    if kind == "check":
        space[name](space[entry])
    elif kind == "function":
        space[name]()
    elif kind == "case":
        _run_case(space[name[0]], name[1])
    if not guard.intact():
        raise RefusedError("the solution changed what the tests are made of")
    say("passed")


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


class Guard:
    """What modules and unittest's TestCase held before the solution came."""

    def __init__(self, modules: list[types.ModuleType], case_type: type | None) -> None:
        self._spaces = [(module.__dict__, dict(module.__dict__)) for module in modules]
        self._case_type = case_type
        self._case = dict(vars(case_type)) if case_type is not None else {}
        self._set, self._del = type.__setattr__, type.__delattr__

    def restore(self) -> None:
        """Puts all of it back."""
        for space, before in self._spaces:
            if space != before:
                space.clear()
                space.update(before)
        if self._case_type is not None and not self._same(vars(self._case_type), self._case):
            for name in set(vars(self._case_type)) - set(self._case):
                self._del(self._case_type, name)
            for name, value in self._case.items():
                if vars(self._case_type).get(name) is not value:
                    self._set(self._case_type, name, value)

    def intact(self) -> bool:
        """Whether all of it is still the same objects."""
        case = vars(self._case_type) if self._case_type is not None else {}
        return self._same(case, self._case) and all(self._same(space, before) for space, before in self._spaces)

    @staticmethod
    def _same(space: Any, before: dict[str, Any], *, _len: Any = len, _all: Any = all) -> bool:
        return bool(
            _len(space) == _len(before) and _all(name in space and space[name] is before[name] for name in before)
        )


_RUNNERS: dict[str, Callable[[str, dict[str, Any], Callable[..., None]], None]] = {
    "program": _run_program,
    "expression": _run_expression,
    "call": _run_call,
    "general": _run_general,
}
