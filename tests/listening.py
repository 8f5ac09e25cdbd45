"""Where processes listen."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import psutil


def family_of(pid: int) -> list[psutil.Process]:
    """A process and all that it started, and they."""
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def commands_of(family: Iterable[psutil.Process]) -> list[list[str]]:
    """What each that is still there was started as."""
    found = []
    for process in family:
        with suppress(psutil.Error):
            found.append(process.cmdline())
    return found


def listening(family: Iterable[psutil.Process]) -> list[tuple[str, str, int]]:
    """(process name, address, port) of every socket that waits for callers."""
    found = []
    for process in family:
        with suppress(psutil.NoSuchProcess):
            at = [c.laddr for c in process.net_connections() if c.status == psutil.CONN_LISTEN]
            found += [(process.name(), one.ip.removeprefix("::ffff:"), one.port) for one in at]
    return found


def open_to_others(family: Iterable[psutil.Process]) -> list[tuple[str, str, int]]:
    """Those that listen elsewhere than on loopback alone."""
    return [one for one in listening(family) if one[1] not in ("127.0.0.1", "::1")]
