"""Other people's trainers, installed as they are on PyPI, without their dependencies, beside ours and not among them.

They run in processes of their own: their versions of libraries are not ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from orchestration.storage.cache import cache_root, settings_hash

ROOT = Path(__file__).parents[4]
_INSTALL_TIMEOUT_S = 300


def installed(name: str, *requirements: str) -> Path:
    """The folder of a caller, kept in the cache for later runs; skips the test where it cannot be had.

    Args:
        name: for the folder: what it is, with its version.
        requirements: what to install there, all of it pinned: the caller, and libraries of its that are not ours.
    """
    folder = cache_root() / "tests" / "callers" / f"{name}-{settings_hash(requirements)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=2 * _INSTALL_TIMEOUT_S):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
                if (why := _install(Path(beside) / "made", requirements)) is not None:
                    pytest.skip(f"{name} cannot be had here: {why}")
                (Path(beside) / "made").rename(folder)
    return folder


def _install(folder: Path, requirements: Sequence[str]) -> str | None:
    """None, or why it could not be."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--target", str(folder), *requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"pip took longer than {_INSTALL_TIMEOUT_S} s"
    said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    return None if done.returncode == 0 else [*said, "pip said nothing"][0]


def run_script(folder: Path, script: str, *arguments: str, beside: Path | None = None, timeout_s: float = 300.0) -> Any:
    """What a script of this folder says on its last line, as JSON; it sees the caller's packages before ours, and the
    modules in the folder `beside`.

    Fails with what it wrote if it fails.
    """
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}:{beside or ROOT}", "NO_PROXY": "127.0.0.1"},
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return json.loads(done.stdout.splitlines()[-1])
