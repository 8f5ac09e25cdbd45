"""Libraries that not every installation has, and modules that lie beside a recipe."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from orchestration.errors import ConfigError


def require(module: str, *, by: str, extra: str, package: str | None = None) -> None:
    """Raises ConfigError when a library is not installed, with the extra that installs it.

    Args:
        by: who needs it, the start of the sentence.
        package: its name for pip, where that is not the module's.
    """
    if find_spec(module) is None:
        raise ConfigError(f"{by} needs the package {package or module}: install rlvr[{extra}] into this environment")


def make_importable(folder: Path) -> None:
    """Let this process, and those that it starts, import the modules in a folder: after all others, so that none of
    them hides an installed one."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.append(place)
        importlib.invalidate_caches()
    inherited = os.environ.get("PYTHONPATH", "")
    if place not in inherited.split(os.pathsep):
        os.environ["PYTHONPATH"] = f"{inherited}{os.pathsep}{place}" if inherited else place
