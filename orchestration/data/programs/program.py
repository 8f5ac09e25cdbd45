"""One small programming task, and how the files beside this one write it down."""

from __future__ import annotations

import ast
import textwrap
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A function to write, its tests, one solution that passes them and two that do not."""

    name: str
    signature: str
    """`triple(x)`."""
    returns: str
    """What it returns, after the word "returns"."""
    difficulty: int
    """1 (one expression), 2 (a loop or a few cases), 3 (an algorithm)."""
    solution: str
    wrong: tuple[str, ...]
    calls: tuple[tuple[tuple[Any, ...], Any], ...]
    """Arguments, and the value that they give."""

    @property
    def question(self) -> str:
        return f"Write a function {self.signature} that returns {self.returns}."


def read_programs(difficulty: int, text: str) -> tuple[Program, ...]:
    """The tasks of a text, separated by blank lines. Each is

        triple(x) | three times the number x
            return 3 * x
        - return x + 3
        ~ 3 => 4
        > 3 -> 9; 0 -> 0

    the signature and what is returned; the solution's body, indented; two wrong ones, as a body of one line or as the
    solution with a piece replaced; calls with their values.
    """
    return tuple(_read(difficulty, block.splitlines()) for block in text.strip("\n").split("\n\n"))


def _read(difficulty: int, lines: list[str]) -> Program:
    signature, _, returns = lines[0].partition(" | ")
    body = textwrap.dedent("\n".join(line for line in lines[1:] if line.startswith(" ")))
    return Program(
        name=signature.partition("(")[0],
        signature=signature,
        returns=returns,
        difficulty=difficulty,
        solution=_function(signature, body),
        wrong=tuple(_wrong(signature, body, line) for line in lines[1:] if line[0] in "-~"),
        calls=tuple(_call(case) for line in lines if line.startswith("> ") for case in line[2:].split("; ")),
    )


def _wrong(signature: str, body: str, line: str) -> str:
    if line.startswith("- "):
        return _function(signature, line[2:])
    piece, _, other = line[2:].partition(" =>")
    assert piece in body, f"{signature}: {piece!r} is not in the solution"
    return _function(signature, body.replace(piece, other.removeprefix(" ")))


def _function(signature: str, body: str) -> str:
    return f"def {signature}:\n{textwrap.indent(body, '    ')}\n"


def _call(case: str) -> tuple[tuple[Any, ...], Any]:
    arguments, _, value = case.partition(" -> ")
    return ast.literal_eval(f"({arguments},)"), ast.literal_eval(value)
