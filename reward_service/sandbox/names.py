"""Which names of test code mean the solution; all others mean what they mean in Python.

An assertion may call more than the function under test: `math.isclose(area(2), 12.57)`. Only `area` may be the
solution's there, or it would be its own judge.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reward_service.sandbox.preamble import MODULES, OTHER_MODULES, USUAL

_BUILTINS = frozenset(vars(builtins))
_MEDDLERS = frozenset(
    {
        "argv",
        "asyncio",
        "chdir",
        "environ",
        "gc",
        "input",
        "inspect",
        "mock",
        "monkeypatch",
        "patch",
        "seed",
        "settrace",
    }
    | {"signal", "stdin"}
)
"""Names in tests that look into or change the process of the solution, and so have to be in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The names that test code uses without making them."""

    solution: tuple[str, ...]
    """Those that the solution must have."""
    library: tuple[str, ...]
    """Those that are modules of the standard library or are known from it (`isclose`), though nobody imports them."""

    @classmethod
    def of(cls, trees: Sequence[ast.AST], entry_point: str | None) -> Names:
        """Sorts the free names of test code.

        The entry point is the solution's. Where none is named, the functions that are called innermost are, for
        `isclose(area(2), 12.57)` area. Builtins and names known from the standard library are the solution's only
        where nothing else is: `assert sum(10, 15) == 6` tests a `sum` of its own.
        """
        free = free_names(trees)
        entry_point = entry_point and entry_point.partition("(")[0]
        entries = {entry_point} if entry_point is not None else _innermost(trees, free)
        library = {name for name in free - entries if name in USUAL or name in _modules(trees)}
        solution = (free - library - _BUILTINS) | (free & entries if entry_point is None else entries)
        return cls(solution=tuple(sorted(solution - {"candidate"})), library=tuple(sorted(library)))


def free_names(trees: Sequence[ast.AST]) -> set[str]:
    """Names that are read, and bound nowhere in the code."""
    nodes = (node for tree in trees for node in ast.walk(tree))
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read - bound_names(trees)


def bound_names(trees: Sequence[ast.AST]) -> set[str]:
    """Names that code gives a meaning, at any depth."""
    return {name for tree in trees for node in ast.walk(tree) for name in _bound(node)}


def _bound(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).partition(".")[0]
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name


def _called(tree: ast.AST, free: set[str]) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(root := _root(node.func), ast.Name) and root.id in free:
            yield node, root.id


def _root(node: ast.AST) -> ast.AST:
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node


def _innermost(trees: Sequence[ast.AST], free: set[str]) -> set[str]:
    modules = _modules(trees)
    inner: set[str] = set()
    for tree in trees:
        calls = {node: name for node, name in _called(tree, free) if name not in modules}
        inner |= {name for node, name in calls.items() if not any(other in calls for other in _arguments(node))}
    own = {name for name in inner if name not in USUAL and name not in _BUILTINS}
    return own or inner


def _arguments(call: ast.Call) -> Iterator[ast.AST]:
    """What stands in a call's arguments."""
    return (node for part in (*call.args, *call.keywords) for node in ast.walk(part))


def _modules(trees: Sequence[ast.AST]) -> set[str]:
    """Names of modules that are used as such: with a dot behind them."""
    nodes = (node for tree in trees for node in ast.walk(tree))
    used = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    return {name for name in used if name in MODULES or name in OTHER_MODULES or name in sys.stdlib_module_names}


def meddles(tree: ast.AST, made_by_tests: set[str]) -> bool:
    """Whether test code has to run in the solution's own process: it patches or inspects it, or extends its classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Await | ast.AsyncFunctionDef):
            return True
        words = {getattr(node, key, None) for key in ("id", "attr", "module", "name") if key in node._fields}
        if any(part in _MEDDLERS for word in words if isinstance(word, str) for part in word.split(".")):
            return True
        if isinstance(node, ast.ClassDef):
            roots = {root.id for base in node.bases if isinstance(root := _root(base), ast.Name)}
            if not roots <= made_by_tests | _BUILTINS | set(USUAL) | MODULES:
                return True
    return False
