"""Tests of a reference, read into what the sandbox runs and what its answers are compared with outside.

Test code is split with `ast`: of `assert EXPR == LITERAL` only EXPR goes into the sandbox. An EXPR that calls nothing
but the function under test is evaluated in the solution's process; every other one in a process that has not seen the
solution and asks that one for what the solution's functions give.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_service.sandbox.names import Names, bound_names, free_names, meddles
from reward_service.sandbox.preamble import imports

MAX_TESTS = 1000


class BrokenTestsError(ValueError):
    """The tests are no tests: the message says which and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One test: what goes into the sandbox, and what must come out."""

    job: Mapping[str, Any]
    judge: str
    """stdout, value (equals `expected`), truth (`bool()` is `expected`), or verdict (judged inside the sandbox)."""
    expected: Any = None
    json_lists: bool = False
    """The expected value is JSON: its lists stand for lists or tuples."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names that the solution must define, as far as they are known."""
        function = self.job.get("function")
        return (function.partition(".")[0],) if function else tuple(self.job.get("needs", ()))


def programs(entries: Sequence[Any]) -> list[Case]:
    """`{"stdin": text, "stdout": text}`: the solution is run as a script for each."""
    cases = []
    for at, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("stdout"), str):
            raise BrokenTestsError(f'stdio[{at}] has no text under "stdout"')
        stdin = entry.get("stdin", "")
        if not isinstance(stdin, str):
            raise BrokenTestsError(f'stdio[{at}] has no text under "stdin"')
        cases.append(Case(job={"kind": "program", "stdin": stdin}, judge="stdout", expected=entry["stdout"]))
    return cases


def calls(entries: Sequence[Any], entry_point: str | None) -> list[Case]:
    """`{"args": [...], "kwargs": {...}, "expected": value}`, with `"function"` or the reference's `entry_point`."""
    cases = []
    for at, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or "expected" not in entry:
            raise BrokenTestsError(f'calls[{at}] has no "expected"')
        function = entry.get("function", entry_point and entry_point.replace("()", ""))
        args, kwargs = entry.get("args", []), entry.get("kwargs", {})
        if not isinstance(function, str) or not all(part.isidentifier() for part in function.split(".")):
            raise BrokenTestsError(f"calls[{at}] names no function, and there is no entry_point: {function!r:.80}")
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise BrokenTestsError(f"calls[{at}]: args is a list, kwargs an object")
        job = {"kind": "call", "function": function, "args": args, "kwargs": kwargs}
        cases.append(Case(job=job, judge="value", expected=entry["expected"], json_lists=True))
    return cases


def assertions(lines: Sequence[Any], setup: str = "", entry_point: str | None = None) -> list[Case]:
    """Any assertions, each a test: `assert f(1) == 2`, `assert math.isclose(f(1), 2)`, `assert f(1) < 3`, …

    `setup` is run before each, in the process of the solution and in that of the test.
    """
    before = parse(setup, "setup", may_be_empty=True)
    bodies = [parse(line, f"asserts[{at}]") for at, line in enumerate(lines)]
    names = Names.of([*before, *(statement for body in bodies for statement in body)], entry_point)
    cases = []
    for at, (line, body) in enumerate(zip(lines, bodies, strict=True)):
        for statement in body:
            case = split(statement, setup, names)
            if case is None:
                raise BrokenTestsError(
                    f"asserts[{at}] is not an assertion on the solution; general code belongs under tests: {line!r:.80}"
                )
            cases.append(case)
    return cases


def general(blocks: Sequence[Any], entry_point: str | None) -> list[Case]:
    """Blocks of code; a test for each `test_*` function and TestCase method, one for `check`, or for the block."""
    cases = []
    for at, code in enumerate(blocks):
        body = parse(code, f"tests[{at}]")
        cases += _check_as_assertions(body, entry_point) or _units(body, code, entry_point, at)
    return cases


def parse(code: Any, where: str, *, may_be_empty: bool = False) -> list[ast.stmt]:
    """The statements of a reference's code; BrokenTestsError if it is none, or says nothing."""
    if not isinstance(code, str):
        raise BrokenTestsError(f"{where} is no text")
    try:
        body = ast.parse(code).body
        compile(code, where, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BrokenTestsError(f"{where} does not compile: {error!s:.100}") from None
    if not may_be_empty and all(isinstance(node, ast.Pass) or _is_docstring(node) for node in body):
        raise BrokenTestsError(f"{where} is empty")
    return body


def split(statement: ast.stmt, setup: str, names: Names) -> Case | None:
    """An assertion as what is to be evaluated, where, and what must come of it; None if it asserts nothing of these."""
    if not isinstance(statement, ast.Assert) or free_names([statement]).isdisjoint(names.solution):
        return None
    test = statement.test
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        left, right = test.left, test.comparators[0]
        for expression, other in ((left, right), (right, left)):
            value = _Literal.of(other) if _Literal.of(expression) is None else None
            # `is` with anything but None is for the process of the test: 1 is not True
            if value is not None and isinstance(test.ops[0], ast.Eq if value.value is not None else ast.Eq | ast.Is):
                return _evaluated(expression, "value", value.value, setup, names)
    wanted = True
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, wanted = test.operand, False
    return _evaluated(test, "truth", wanted, setup, names)


def _evaluated(node: ast.expr, judge: str, expected: Any, setup: str, names: Names) -> Case:
    if isinstance(node, ast.Call) and _is_of_the_solution(node.func, names):
        job = {"kind": "expression", "setup": setup, "needs": names.solution, "expr": ast.unparse(node)}
        return Case(job=job, judge=judge, expected=expected)
    return Case(job=_served(names, unit=judge, code=ast.unparse(node), setup=setup), judge=judge, expected=expected)


def _is_of_the_solution(function: ast.expr, names: Names) -> bool:
    """Whether it is a function of the solution, or a method of an instance of a class of the solution."""
    while isinstance(function, ast.Attribute):
        function = function.value
    if isinstance(function, ast.Call) and isinstance(function.func, ast.Name) and function.func.id[:1].isupper():
        function = function.func
    return isinstance(function, ast.Name) and function.id in names.solution


def _served(names: Names, *, unit: str, code: str, setup: str = "", entry: str | None = None, name: Any = None) -> Any:
    """A job for two processes, of which the one with the solution never has what is under `judge`."""
    judge = {"unit": unit, "name": name, "code": code, "setup": setup, "entry": entry}
    judge |= {"imports": imports(names.library), "solution": names.solution}
    return {"kind": "served", "setup": setup, "needs": names.solution, "judge": judge}


@dataclass(frozen=True, slots=True)
class _Literal:
    value: Any

    @classmethod
    def of(cls, node: ast.expr) -> _Literal | None:
        """The value of a literal, or of a plain type called on one, as in `set([1, 2])`; None for anything else."""
        try:
            return cls(ast.literal_eval(node))
        except (ValueError, TypeError, MemoryError, RecursionError):
            pass
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.keywords:
            return None
        make = _CONSTRUCTORS.get(node.func.id)
        args = [cls.of(arg) for arg in node.args]
        if make is None or len(args) > 1 or None in args:
            return None
        try:
            return cls(make(*(arg.value for arg in args if arg is not None)))
        except (ValueError, TypeError, OverflowError):
            return None


_CONSTRUCTORS: Mapping[str, Callable[..., Any]] = {
    kind.__name__: kind for kind in (set, frozenset, tuple, list, dict, float)
}


class _Replace(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, ast.parse(new, mode="eval").body

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self.new if node.id == self.old else node


def _check_as_assertions(body: Sequence[ast.stmt], entry_point: str | None) -> list[Case]:
    """A `check(candidate)` made of assertions alone, as those; [] for any other code."""
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    others = [node for node in body if not isinstance(node, ast.FunctionDef)]
    imported = [node for node in others if isinstance(node, ast.Import | ast.ImportFrom)]
    rest = [node for node in others if node not in imported and not _is_docstring(node) and not _is_metadata(node)]
    if entry_point is None or rest or [node.name for node in functions] != ["check"]:
        return []
    check = functions[0]
    if len(check.args.args) != 1:
        return []
    replace = _Replace(check.args.args[0].arg, entry_point)
    statements = [one for one in check.body if not _is_docstring(one) and not _is_always_true(one)]
    statements = [replace.visit(copy.deepcopy(statement)) for statement in statements]
    names = Names.of([*imported, *statements], entry_point)
    if any(meddles(statement, set()) for statement in statements):
        return []
    cases = [split(statement, "\n".join(ast.unparse(node) for node in imported), names) for statement in statements]
    return [case for case in cases if case is not None] if None not in cases else []


def _units(body: Sequence[ast.stmt], code: str, entry_point: str | None, at: int) -> list[Case]:
    names = Names.of(body, entry_point)
    beside = any(meddles(node, bound_names(body)) for node in body)

    def unit(kind: str, name: Any = None) -> Case:
        if not beside:
            return Case(job=_served(names, unit=kind, code=code, entry=entry_point, name=name), judge="verdict")
        job = {"kind": "beside", "code": code, "entry": entry_point, "unit": kind, "name": name}
        return Case(job=job | {"modules": _imported(body)}, judge="verdict")

    cases: list[Case] = []
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == "check" and entry_point is not None:
            cases.append(unit("check", "check"))
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test") and not node.args.args:
            cases.append(unit("function", node.name))
        elif isinstance(node, ast.ClassDef) and any("TestCase" in ast.unparse(base) for base in node.bases):
            methods = [one.name for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
            cases += [unit("case", (node.name, name)) for name in methods if name.startswith("test")]
    if cases:
        return cases
    if not any(isinstance(node, ast.Assert | ast.Raise | ast.Call) for top in body for node in ast.walk(top)):
        raise BrokenTestsError(f"tests[{at}] asserts nothing")
    return [unit("script")]


def _imported(body: Sequence[ast.stmt]) -> list[str]:
    """Modules that code imports, apart from the solution."""
    found: set[str] = set()
    for node in (node for statement in body for node in ast.walk(statement)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return sorted(found - {"solution"})


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_metadata(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and _Literal.of(node.value) is not None


def _is_always_true(node: ast.stmt) -> bool:
    """`assert True, "…"`, which HumanEval's checks begin with."""
    return isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant) and bool(node.test.value)


KEYS = ("stdio", "calls", "asserts", "tests")
"""Keys of a reference that hold tests."""


_METHOD = re.compile(r"([^\W\d]\w*)(?:\(\))?\.([^\W\d]\w*)")


def _entry(name: Any) -> str:
    """An entry point as an expression: a name, or `Solution().method`, also written without the brackets."""
    if isinstance(name, str) and (method := _METHOD.fullmatch(name)):
        return f"{method[1]}().{method[2]}"
    if not isinstance(name, str) or not name.isidentifier():
        raise BrokenTestsError(f"entry_point is no identifier, nor a Class.method: {name!r:.80}")
    return name


def read(reference: Mapping[str, Any]) -> list[Case]:
    """All tests of a reference: under `stdio`, `calls`, `asserts`, `tests`; BrokenTestsError if there is none."""
    entry_point = reference.get("entry_point")
    if entry_point is not None:
        entry_point = _entry(entry_point)
    found: dict[str, Sequence[Any]] = {}
    for key in KEYS:
        entries = reference.get(key, [])
        entries = [entries] if isinstance(entries, str) and key in ("asserts", "tests") else entries
        if not isinstance(entries, list):
            raise BrokenTestsError(f"{key} is no list")
        found[key] = entries
    cases = [
        *programs(found["stdio"]),
        *calls(found["calls"], entry_point),
        *assertions(found["asserts"], reference.get("setup", ""), entry_point),
        *general(found["tests"], entry_point),
    ]
    if not cases:
        raise BrokenTestsError(f"the reference has no tests under {', '.join(KEYS)}")
    if len(cases) > MAX_TESTS:
        raise BrokenTestsError(f"{len(cases)} tests, and {MAX_TESTS} are the limit")
    return cases
