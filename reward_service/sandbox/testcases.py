"""Tests of a reference, read into what the sandbox runs and what its answers are compared with outside.

Test code is split with `ast`: of `assert EXPR == LITERAL` only EXPR goes into the sandbox.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAX_TESTS = 1000


class BrokenTestsError(ValueError):
    """The tests are no tests: the message says which and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One test: what goes into the sandbox, and what must come out."""

    job: Mapping[str, Any]
    judge: str
    """stdout, value (equals `expected`), truth (`bool()` is `expected`), or verdict (judged inside)."""
    expected: Any = None
    json_lists: bool = False
    """The expected value is JSON: its lists stand for lists or tuples."""


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
        function = entry.get("function", entry_point)
        args, kwargs = entry.get("args", []), entry.get("kwargs", {})
        if not isinstance(function, str) or not all(part.isidentifier() for part in function.split(".")):
            raise BrokenTestsError(f"calls[{at}] names no function, and there is no entry_point: {function!r:.80}")
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise BrokenTestsError(f"calls[{at}]: args is a list, kwargs an object")
        job = {"kind": "call", "function": function, "args": args, "kwargs": kwargs}
        cases.append(Case(job=job, judge="value", expected=entry["expected"], json_lists=True))
    return cases


def assertions(lines: Sequence[Any], setup: str = "") -> list[Case]:
    """`assert EXPR == LITERAL` (either way round), `assert EXPR is None`, `assert EXPR`, `assert not EXPR`."""
    cases = []
    parse(setup, "setup", may_be_empty=True)
    for at, line in enumerate(lines):
        body = parse(line, f"asserts[{at}]")
        for statement in body:
            case = split(statement, setup)
            if case is None:
                raise BrokenTestsError(
                    f"asserts[{at}] is not assert EXPR == LITERAL; general code belongs under tests: {line!r:.80}"
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


def split(statement: ast.stmt, setup: str) -> Case | None:
    """An assertion as an expression and the value that it must have; None if it is of another form."""
    if not isinstance(statement, ast.Assert):
        return None
    test = statement.test
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq | ast.Is):
        left, right = test.left, test.comparators[0]
        for expression, other in ((left, right), (right, left)):
            value = _Literal.of(other)
            if value is not None and _Literal.of(expression) is None:
                return Case(job=_expression(expression, setup), judge="value", expected=value.value)
        return None
    wanted = True
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        test, wanted = test.operand, False
    # a comparison or arithmetic inside would be made beside the solution, on objects that may lie
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Name | ast.Attribute):
        return Case(job=_expression(test, setup), judge="truth", expected=wanted)
    return None


def _expression(node: ast.expr, setup: str) -> dict[str, Any]:
    return {"kind": "expression", "setup": setup, "expr": ast.unparse(node)}


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


class _Rename(ast.NodeTransformer):
    def __init__(self, old: str, new: str) -> None:
        self.old, self.new = old, new

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(self.new, node.ctx) if node.id == self.old else node


def _check_as_assertions(body: Sequence[ast.stmt], entry_point: str | None) -> list[Case]:
    """A `check(candidate)` made of splittable assertions alone, as those; [] for any other code."""
    functions = [node for node in body if isinstance(node, ast.FunctionDef)]
    others = [node for node in body if not isinstance(node, ast.FunctionDef)]
    imports = [node for node in others if isinstance(node, ast.Import | ast.ImportFrom)]
    rest = [node for node in others if node not in imports and not _is_docstring(node) and not _is_metadata(node)]
    if entry_point is None or rest or [node.name for node in functions] != ["check"]:
        return []
    check = functions[0]
    if len(check.args.args) != 1:
        return []
    rename = _Rename(check.args.args[0].arg, entry_point)
    setup = "\n".join(ast.unparse(node) for node in imports)
    cases = []
    for statement in check.body:
        if _is_docstring(statement) or _is_always_true(statement):
            continue
        case = split(rename.visit(copy.deepcopy(statement)), setup)
        if case is None:
            return []
        cases.append(case)
    return cases


def _units(body: Sequence[ast.stmt], code: str, entry_point: str | None, at: int) -> list[Case]:
    def unit(kind: str, name: Any = None) -> Case:
        job = {"kind": "general", "code": code, "entry": entry_point, "unit": kind, "name": name}
        return Case(job=job, judge="verdict")

    cases: list[Case] = []
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == "check" and entry_point is not None:
            cases.append(unit("check", "check"))
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test") and not node.args.args:
            cases.append(unit("function", node.name))
        elif isinstance(node, ast.ClassDef) and any("TestCase" in ast.unparse(base) for base in node.bases):
            methods = [one.name for one in node.body if isinstance(one, ast.FunctionDef)]
            cases += [unit("case", (node.name, name)) for name in methods if name.startswith("test")]
    if cases:
        return cases
    if not any(isinstance(node, ast.Assert | ast.Raise | ast.Call) for top in body for node in ast.walk(top)):
        raise BrokenTestsError(f"tests[{at}] asserts nothing")
    return [unit("script")]


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_metadata(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and _Literal.of(node.value) is not None


def _is_always_true(node: ast.stmt) -> bool:
    """`assert True, "…"`, which HumanEval's checks begin with."""
    return isinstance(node, ast.Assert) and isinstance(node.test, ast.Constant) and bool(node.test.value)


KEYS = ("stdio", "calls", "asserts", "tests")
"""Keys of a reference that hold tests."""


def read(reference: Mapping[str, Any]) -> list[Case]:
    """All tests of a reference: under `stdio`, `calls`, `asserts`, `tests`; BrokenTestsError if there is none."""
    entry_point = reference.get("entry_point")
    if entry_point is not None and not (isinstance(entry_point, str) and entry_point.isidentifier()):
        raise BrokenTestsError(f"entry_point is no identifier: {entry_point!r:.80}")
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
        *assertions(found["asserts"], reference.get("setup", "")),
        *general(found["tests"], entry_point),
    ]
    if not cases:
        raise BrokenTestsError(f"the reference has no tests under {', '.join(KEYS)}")
    if len(cases) > MAX_TESTS:
        raise BrokenTestsError(f"{len(cases)} tests, and {MAX_TESTS} are the limit")
    return cases
