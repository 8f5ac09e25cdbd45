"""One test in a process of its own: loads the solution, runs the test, says what came of it, and is gone.

What is said goes through a private descriptor, each line behind a nonce that is made for this test alone. Where the
outcome is judged elsewhere (programs, calls, expressions outside; other tests in `judge`, a process without the
solution) a forged line gains nothing: the lie would have to be the right answer. For tests that run `beside` the
solution it would; see `reward_service.sandbox`.
"""

from __future__ import annotations

import os
import resource
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

from reward_service.sandbox.inside import beside, judge, values

_MESSAGE_CHARS = 200
_STREAMS = (("stdin", "r", "replace"), ("stdout", "w", "surrogateescape"), ("stderr", "w", "backslashreplace"))


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
        for number, (name, mode, errors) in enumerate(_STREAMS):
            stream = open(number, mode, encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)  # keeps it open where the solution puts another around its buffer
        for name in [name for name in sys.modules if name.startswith("reward_service")]:
            del sys.modules[name]
        sys.setrecursionlimit(job["recursion_limit"])
        _RUNNERS[test["kind"]](job, test, verdict.say)
    except BaseException as error:
        verdict.say("failed", _message(error))
    leave(0)


def _load(job: dict[str, Any], name: str, say: Callable[..., None], needs: Iterable[str] = ()) -> Any:
    """The solution as a module, or None after telling how it failed.

    One that leaves in order at its end (`exit()`) has run if it is a program, or has what the test needs of it.
    """
    try:
        compiled = compile(job["code"], "<solution>", "exec", dont_inherit=True)
    except BaseException as error:
        say("no_compile", _message(error))
        return None
    say("compiled")
    module = types.ModuleType(name)
    module.__file__ = "solution.py"
    sys.modules[name] = sys.modules["solution"] = module
    try:
        exec(compile(job["preamble"], "<preamble>", "exec", dont_inherit=True), module.__dict__)
        exec(compiled, module.__dict__)
    except BaseException as error:
        left = isinstance(error, SystemExit) and error.code in (None, 0)
        if not left or not (name == "__main__" or all(need in module.__dict__ for need in needs)):
            say("no_run", _message(error))
            return None
    if name != "__main__":
        say("ran")
    return module


def _run_program(job: dict[str, Any], test: dict[str, Any], say: Callable[..., None]) -> None:
    """The solution as a script; what it printed is read by the supervisor, and judged outside."""
    stdout = sys.stdout
    module = _load(job, "__main__", say)
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    if "atexit" in sys.modules:
        sys.modules["atexit"]._run_exitfuncs()
    for stream in (sys.stdout, stdout):
        if stream is not None and not getattr(stream, "closed", False):
            stream.flush()
    if module is not None:
        say("ran")
        say("ended")


def _with_setup(job: dict[str, Any], test: dict[str, Any], say: Callable[..., None]) -> types.ModuleType | None:
    module: types.ModuleType | None = _load(job, "solution", say, test.get("needs", ()))
    if module is not None and test["setup"]:
        exec(compile(test["setup"], "<setup>", "exec", dont_inherit=True), module.__dict__)
    return module


def _run_expression(job: dict[str, Any], test: dict[str, Any], say: Callable[..., None]) -> None:
    module = _with_setup(job, test, say)
    if module is not None:
        value = eval(compile(test["expr"], "<test>", "eval", dont_inherit=True), module.__dict__)
        say("value", values.encode(value, budget=[job["value_parts"]]))


def _run_call(job: dict[str, Any], test: dict[str, Any], say: Callable[..., None]) -> None:
    names = test["function"].split(".")
    target: Any = _load(job, "solution", say, names[:1])
    if target is None:
        return
    for part in names:
        # `Solution.method` is called on a fresh instance, as programming sites do
        target = getattr(target() if isinstance(target, type) else target, part)
    say("value", values.encode(target(*test["args"], **test["kwargs"]), budget=[job["value_parts"]]))


def _serve(job: dict[str, Any], test: dict[str, Any], say: Callable[..., None]) -> None:
    module = _with_setup(job, test, say)
    if module is not None:
        judge.serve(module, job["value_parts"])


def _judge(job: dict[str, Any], test: dict[str, Any], say: Callable[..., None]) -> None:
    judge.judge(test["index"], job["value_parts"], say)


def _run_beside(job: dict[str, Any], test: dict[str, Any], say: Callable[..., None]) -> None:
    needs = [test["entry"].partition("(")[0]] if test["entry"] else []
    beside.run_beside(lambda: _load(job, "solution", say, needs), test, say)


_RUNNERS: dict[str, Callable[[dict[str, Any], dict[str, Any], Callable[..., None]], None]] = {
    "program": _run_program,
    "expression": _run_expression,
    "call": _run_call,
    "served": _serve,
    "judge": _judge,
    "beside": _run_beside,
}
