"""Fenced blocks of Markdown, as language models write them: indented, quoted, unclosed, with a file's name as mark."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

_FENCE = re.compile(
    r"^(?P<indent>(?:>[ \t]?)*+[ \t]*+(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?)(?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)$"
    r"|^[^`\n]+(?P<inline>`{3,})(?P<mark>i?python[\d.]*|py\d?)[ \t\r]*$",
    re.MULTILINE | re.IGNORECASE,
)
"""A fence on a line of its own, behind the mark of a list or quotation too, or one for Python at the end of a line."""
_CLOSES = re.compile(r"\s*(?:<[^\n]*)?")
"""What may follow a closing fence: nothing, or a tag or end token."""
_MARK = re.compile(r"[{.\s]*([\w+#./\\-]*)")
_PYTHON = re.compile(r"i?python[\d.]*|py\d?|.*\.py")
_ONE_LINE = re.compile(r"(?<!`)`{3,}+(?:i?python[\d.]*|py\d?)[ \t]+([^`\n]+)`{3,}", re.IGNORECASE)
_THOUGHT = re.compile(r"</think(?:ing)?>")
_QUOTED = re.compile(r"^(?:>[ \t]?)+", re.MULTILINE)
_SHORTEST, _GREATEST_INDENT = 3, 3
"""Of a closing fence: beyond that many blanks further in than the one that opened, it is text of the code."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a text."""

    mark: str
    """Its language, in lower case, without a file's name behind it (`python:main.py`)."""
    code: str
    """What it holds, dedented."""
    closed: bool = True


@dataclass(frozen=True, slots=True)
class _Fence:
    """A line with a fence."""

    start: int
    end: int
    indent: str
    sign: str
    length: int
    info: str

    @classmethod
    def of(cls, line: re.Match[str]) -> _Fence:
        signs = line["fence"] or line["inline"]
        info = line["mark"] or line["info"] or ""
        return cls(line.start(), line.end() + 1, line["indent"] or "", signs[0], len(signs), info)

    @property
    def has_mark(self) -> bool:
        return _CLOSES.fullmatch(self.info) is None

    def is_near(self, other: _Fence) -> bool:
        width, greatest = (len(one.indent.expandtabs(4)) for one in (self, other))
        return self.sign == other.sign and width <= greatest + _GREATEST_INDENT


def python_blocks(text: str) -> list[Block] | None:
    """The blocks of a completion that may be its Python code, in order; None if it has no blocks at all.

    Those behind the end of its thoughts, if there are any; those marked as Python, else those without a mark; whole
    ones, else those that are not closed. Where the prompt has opened the first one, that counts too.
    """
    for part in dict.fromkeys((_THOUGHT.split(text)[-1], text)):
        blocks = fenced_blocks(f"```python\n{part}" if _is_opened_by_prompt(part) else part)
        if found := _of_python(blocks):
            return found
    return [] if blocks else None


def without_thoughts(text: str) -> str:
    """A completion that has no blocks, as code: what stands behind its thoughts."""
    return _THOUGHT.split(text)[-1]


def _of_python(blocks: Sequence[Block]) -> list[Block]:
    blocks = [block for block in blocks if block.code.strip()]
    for is_python in (True, False):
        marked = [block for block in blocks if (_PYTHON.fullmatch(block.mark) if is_python else not block.mark)]
        if marked:
            return [block for block in marked if block.closed] or marked
    return []


def _is_opened_by_prompt(text: str) -> bool:
    """Whether a text begins with code that its first fence closes."""
    first = _FENCE.search(text)
    if first is None or _Fence.of(first).has_mark:
        return False
    try:
        body = ast.parse(text[: first.start()]).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call) for node in body)


def fenced_blocks(text: str) -> list[Block]:
    """The fenced blocks of a text, and for one of Markdown those in it.

    A fence with a mark begins a block even within another that was not closed, and may stand right behind the fence
    that closes that (seven or more signs in one). The fence that closes a block may have a tag behind it
    (`</answer>`), but is not much further in than the one that opened it: a docstring may hold others.
    """
    blocks: list[Block] = []
    opened: _Fence | None = None
    for match in _FENCE.finditer(text):
        line = _Fence.of(match)
        if opened is None:
            opened = line
            continue
        two = line.has_mark and line.length == 2 * opened.length
        if line.is_near(opened) and (
            two or (line.length == opened.length if line.has_mark else line.length >= opened.length)
        ):
            blocks += _read(opened, text[opened.end : line.start], closed=two or not line.has_mark)
            opened = None
            if line.has_mark:
                length = line.length // 2 if two else line.length
                opened = _Fence(line.start, line.end, line.indent, line.sign, length, line.info)
    if opened is not None:
        blocks += _read(opened, text[opened.end :], closed=False)
    return blocks


def _read(opened: _Fence, content: str, *, closed: bool) -> list[Block]:
    mark = _MARK.match(opened.info)
    name = mark[1].lower() if mark else ""
    if name in ("markdown", "md") and closed:
        return fenced_blocks(content)
    code = content.replace("\r\n", "\n")
    if ">" in opened.indent:
        code = _QUOTED.sub("", code)
    if not closed:  # a fence right behind the last line of code closes it too
        code = re.sub(r"```[^\n`]*\Z", "", code.rstrip())
    if code.lstrip("\n")[:1] in (" ", "\t"):
        code = textwrap.dedent(code)
    return [Block(name, code, closed)]


def one_line_code(text: str) -> str | None:
    """The last code of a text that stands with its fences on one line."""
    found = _ONE_LINE.findall(text)
    return found[-1] if found else None
