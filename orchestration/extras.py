"""Libraries that not every installation has."""

from __future__ import annotations

from importlib.util import find_spec

from orchestration.errors import ConfigError


def require(module: str, *, by: str, extra: str, package: str | None = None) -> None:
    """Raises ConfigError when a library is not installed, with the extra that installs it.

    Args:
        by: who needs it, the start of the sentence.
        package: its name for pip, where that is not the module's.
    """
    if find_spec(module) is None:
        raise ConfigError(f"{by} needs the package {package or module}: install rlvr[{extra}] into this environment")
