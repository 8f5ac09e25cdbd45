"""Libraries that not every installation has, and modules that lie beside a recipe."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
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


def is_found(module: str) -> bool:
    """Whether there is a module; imports none."""
    top = module.partition(".")[0]
    return top.isidentifier() and find_spec(top) is not None


def own_file(module: str) -> Path | None:
    """The file that holds a module of one's own, or the whole folder of its package, to be sent along with a run.

    None for an installed one: other machines have to have that installed too.

    Raises:
        ConfigError: there is no such module.
    """
    top = module.partition(".")[0]
    spec = find_spec(top)
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        raise ConfigError(f"there is no module {top!r}, installed or beside the recipe")
    file = Path(next(iter(spec.submodule_search_locations or ()), spec.origin or "")).resolve()
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return None if any(file.is_relative_to(folder) for folder in installed) else file
