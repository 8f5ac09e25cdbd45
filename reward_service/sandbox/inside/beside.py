"""Tests in the process of the solution, for those that patch it, inspect it or extend its classes.

A solution that looks for them finds their code and their values; what can be put back before they run is put back.
"""

from __future__ import annotations

import builtins
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

from reward_service.sandbox.inside import values
from reward_service.sandbox.inside.judge import run_unit

_GUARDED = (
    "builtins", "collections", "functools", "itertools", "math", "operator", "statistics", "unittest", "unittest.case",
    "unittest.mock",
)  # fmt: skip
_HEAP_TYPE = 1 << 9


class RefusedError(BaseException):
    """A test was given something it cannot judge; not an Exception, so that no test swallows it."""


def run_beside(
    load: Callable[[], types.ModuleType | None], test: dict[str, Any], say: Callable[[str, str], None]
) -> None:
    """Runs test code beside the solution that `load` gives: what it uses is taken first, and compared afterwards."""
    settrace, setprofile, plain, stranger = sys.settrace, sys.setprofile, values.plain, _Stranger()
    compiled = compile(test["code"], "<test>", "exec", dont_inherit=True)
    try:
        for name in test["modules"]:
            __import__(name)
    except ImportError as error:
        say("no_test", values.encode(f"{type(error).__name__}: {error}"[:200]))
        return
    cases = [sys.modules["unittest"].TestCase] if "unittest" in sys.modules else []
    guard = Guard([name for name in (*_GUARDED, *test["modules"]) if name in sys.modules and name != "sys"], cases)
    originals = dict(vars(builtins))
    module = load()
    if module is None:
        return
    settrace(None)
    setprofile(None)
    guard.restore()
    entry = test["entry"]
    space = {k: v for k, v in vars(module).items() if k not in originals and not k.startswith("__")}
    space |= {"__name__": "tests", "__builtins__": originals}

    def judged(*args: Any, **kwargs: Any) -> Any:
        value = plain(function(*args, **kwargs))
        if (kind := stranger.among(value)) is not None:
            raise RefusedError(f"the result is, or holds, an object of the solution's own class {kind!r:.50}")
        return value

    if entry:
        function = eval(entry, dict(vars(module)))
        # whether instances of the solution's own class are wanted, the reference says: by the name of a class
        space["candidate"] = function if entry.isidentifier() and entry[:1].isupper() else judged
        if entry.isidentifier():
            space[entry] = space["candidate"]
    exec(compiled, space)
    run_unit(test["unit"], test["name"], space)
    if not guard.intact():
        raise RefusedError("the solution changed what the tests are made of")
    say("passed", "")


class _Stranger:
    """Finds objects of classes that were not there before the solution."""

    def __init__(self) -> None:
        self._known = {id(kind) for module in list(sys.modules.values()) for kind in vars(module).values()}
        self._base_of, self._type = values.base_of, type

    def among(self, value: Any) -> str | None:
        """The name of the class of an object in plain data that is none itself, and of no class that was known."""
        base, made = self._base_of(value), self._type(value)
        if base is None:
            return made.__name__ if made.__flags__ & _HEAP_TYPE and id(made) not in self._known else None
        items: Iterable[Any] = ()
        if base is dict:
            items = [*dict.keys(value), *dict.values(value)]
        elif base in (list, tuple, set, frozenset):
            items = base.__iter__(value)
        return next((found for item in items if (found := self.among(item)) is not None), None)


class Guard:
    """What modules, `sys.modules` and unittest's TestCase held before the solution came."""

    def __init__(self, names: list[str], cases: list[type]) -> None:
        self._modules = {name: (sys.modules[name], dict(vars(sys.modules[name]))) for name in names}
        self._cases = [(case, dict(vars(case))) for case in cases]
        self._listed, self._set, self._del, self._vars = sys.modules, type.__setattr__, type.__delattr__, vars

    def restore(self) -> None:
        """Puts all of it back; what was added to modules stays, as submodules are."""
        for name, (module, before) in self._modules.items():
            self._listed[name] = module
            module.__dict__.update(before)
        for case, before in self._cases:
            now = dict(self._vars(case))
            for name in now.keys() - before.keys():
                self._del(case, name)
            for name, value in before.items():
                if now.get(name) is not value:
                    self._set(case, name, value)

    def intact(self) -> bool:
        """Whether all of it is still the same objects."""
        for name, (module, before) in self._modules.items():
            if self._listed.get(name) is not module or not self._same(module.__dict__, before):
                return False
        for case, before in self._cases:
            now = self._vars(case)
            if not (self._same(now, before) and self._same(before, now)):
                return False
        return True

    @staticmethod
    def _same(now: Any, before: Any, *, _all: Any = all) -> bool:
        return bool(_all(name in now and now[name] is before[name] for name in before))
