"""Messages and pages name commands; each of them exists."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import orchestration
from orchestration.cli import build_parser

ROOT = Path(orchestration.__file__).parents[1]
ROOMS = ("orchestration", "reward_service", "learner", "rollout_server", "docker")


def commands(parser: argparse.ArgumentParser, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All there are, as words."""
    yield above
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, part in action.choices.items():
                yield from commands(part, (*above, name))


def test_commands_that_are_named_exist() -> None:
    there = set(commands(build_parser()))
    with_parts = {words[0] for words in there if len(words) > 1}
    named = set()
    for path in (ROOT / "README.md", *(file for room in ROOMS for file in (ROOT / room).rglob("*.*"))):
        if path.suffix in (".py", ".md", ".yaml"):
            found = re.finditer(r"(?:`|: )rlvr ([a-z][\w-]*)(?: ([a-z][\w-]*))?", path.read_text(encoding="utf-8"))
            named |= {(m[1], m[2]) if m[1] in with_parts and m[2] else (m[1],) for m in found}
    assert len(named) > 20
    assert named - there == set()
