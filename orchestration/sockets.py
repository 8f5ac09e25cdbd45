"""Ports of this machine."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from filelock import FileLock

from orchestration.errors import MachineError

LOOPBACK: Final = "127.0.0.1"
_ASKED_FOR: Final = range(15_000, 32_768)
"""Ports below those that Linux, and macOS, give to connections and to whoever takes any."""


def free_port(preferred: int = 0) -> int:
    """A port that is free on loopback now: the preferred one, or one of those that the kernel gives to nobody, as
    seconds pass until it is taken, and of the others every connection of the machine may be given it.

    Raises:
        MachineError: There is none.
    """
    for port in (*((preferred,) if preferred else ()), *secrets.SystemRandom().sample(_ASKED_FOR, 50), 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return int(probe.getsockname()[1])
    raise MachineError("no port is free on loopback")


def may_use_dashboard_port() -> bool:
    """Whether this process is the one of ours, until it ends, that may have Ray's dashboard at its usual port. Seconds
    pass from the look at a port until the dashboard takes it: of two that began together one would find the other's."""
    try:
        _DASHBOARD_PORT_LOCK.acquire()
    except OSError:  # which filelock's Timeout is, too; and a full disk is no reason to have no port
        return False
    return True


_DASHBOARD_PORT_LOCK: Final = FileLock(
    Path(tempfile.gettempdir()) / f"rlvr-dashboard-port-{os.getuid()}.lock", blocking=False, thread_local=False
)
