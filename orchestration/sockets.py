"""Ports of this machine."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final

from orchestration.errors import MachineError

LOOPBACK: Final = "127.0.0.1"


def free_port(preferred: int = 0) -> int:
    """A port that is free on loopback now: the preferred one, or any.

    Raises:
        MachineError: There is none.
    """
    for port in (preferred, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            return int(probe.getsockname()[1])
    raise MachineError("no port is free on loopback")
