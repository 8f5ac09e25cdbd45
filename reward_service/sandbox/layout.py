"""What of the machine's files the sandbox shows: a Python with its standard library, and the system's libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_SYSTEM = (
    "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache",
    "/nix/store", "/gnu/store",
)  # fmt: skip
_ASK = """
import json, sys, sysconfig, _imp
from importlib._bootstrap_external import MAGIC_NUMBER
paths = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sysconfig.get_config_var("DESTSHARED")]
print(json.dumps({"prefix": sys.base_prefix, "paths": paths, "magic": MAGIC_NUMBER.hex()}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interpreter:
    """A Python, and where it lies."""

    executable: str
    read_only: tuple[tuple[str, str | None], ...]
    """Paths to show, each with its target if it is a symbolic link."""
    magic: str
    """Of its compiled code; another than ours needs the source."""


def outermost(paths: Iterable[str]) -> list[str]:
    """The paths that are not inside another one, sorted."""
    kept: list[str] = []
    for path in sorted({path.rstrip("/") for path in paths}):
        if not any(path.startswith(f"{other}/") for other in kept):
            kept.append(path)
    return kept


@lru_cache
def describe(executable: Path | None, packages: tuple[Path, ...] = ()) -> Interpreter:
    """Asks an interpreter (None: ours) where its files are; OSError or ValueError if it does not answer.

    Those of `packages` are shown beside them; ValueError if one is no folder.
    """
    if missing := [str(path) for path in packages if not path.is_absolute() or not path.is_dir()]:
        raise ValueError(f"sandbox.packages: {', '.join(missing)} is no folder; give the absolute path of one")
    path = os.path.realpath(executable if executable is not None else getattr(sys, "_base_executable", sys.executable))
    answer = subprocess.run([path, "-I", "-S", "-B", "-c", _ASK], capture_output=True, check=False, timeout=30, env={})
    if answer.returncode != 0:
        raise ValueError(f"{path} does not run: {answer.stderr[-200:].decode(errors='replace')}")
    facts = json.loads(answer.stdout)
    wanted = [path, *_SYSTEM, *(found for found in facts["paths"] if found), *map(os.path.realpath, packages)]
    if facts["prefix"] != "/usr":  # there all of it is under /usr/lib, and the rest is not Python's
        wanted.append(f"{facts['prefix']}/lib")
    present = [found for found in wanted if os.path.lexists(found)]
    links = {found: os.readlink(found) for found in present if os.path.islink(found)}
    shown = outermost(present)
    return Interpreter(
        executable=path, read_only=tuple((found, links.get(found)) for found in shown), magic=facts["magic"]
    )
