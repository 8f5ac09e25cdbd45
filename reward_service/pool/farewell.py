"""Imported by the server of forks: at its end, which follows that of a service that was killed, its socket goes."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import stat
from pathlib import Path


def sockets_here() -> list[Path]:
    """Where this process's Unix sockets lie; of those without a name there is nothing to remove."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            if stat.S_ISSOCK(os.fstat(int(entry)).st_mode):
                with socket.socket(fileno=os.dup(int(entry))) as copy:
                    found.append(copy.getsockname())
    return [Path(name) for name in found if isinstance(name, str) and name]


def _remove(paths: list[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # the service has removed it, as it does when it ends in order
            path.unlink()
            path.parent.rmdir()


atexit.register(_remove, sockets_here())
