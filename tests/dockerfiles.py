"""Dockerfiles as lists of instructions."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a stage, counted from 0; `text` is without line breaks."""

    stage: int
    name: str
    text: str

    @property
    def words(self) -> list[str]:
        return json.loads(self.text) if self.text.startswith("[") else shlex.split(self.text)


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A file under `docker/`."""

    path: Path

    def instructions(self) -> list[Instruction]:
        text = "\n".join(line for line in self.path.read_text().splitlines() if not line.lstrip().startswith("#"))
        found: list[Instruction] = []
        for line in re.sub(r"\\\n\s*", " ", text).splitlines():
            if line.strip():
                name, _, rest = line.strip().partition(" ")
                stage = (found[-1].stage if found else -1) + (name == "FROM")
                found.append(Instruction(stage, name, rest.strip()))
        return found

    def named(self, name: str, *, stage: int | None = None) -> list[Instruction]:
        return [i for i in self.instructions() if i.name == name and stage in (None, i.stage)]

    def arguments(self) -> dict[str, str]:
        """Defaults of the build's arguments."""
        pairs = (i.text.partition("=") for i in self.named("ARG"))
        return {name: value for name, _, value in pairs}


def let_through(source: str) -> bool:
    """Whether .dockerignore lets a path of the repository into an image's build."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    return "*" in ignored and f"!{source}" in ignored and (ROOT / source).exists()
