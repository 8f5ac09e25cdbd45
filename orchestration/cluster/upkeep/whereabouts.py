"""Where an actor's process is, so that it can be ended there. Nothing here imports ray."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rollout_server.forking.leftovers import OWNER, end_orphans, is_gone, mark, owned_processes, remove_leftovers


@dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts:
    """A process on a node."""

    host: str
    pid: int
    mark: str
    """As `forking.leftovers.mark`."""
    node_id: str

    @classmethod
    def here(cls, node_id: str) -> Whereabouts:
        """Those of the calling process."""
        return cls(host=socket.gethostname(), pid=os.getpid(), mark=mark(), node_id=node_id)

    def __str__(self) -> str:
        return f"host {self.host}, pid {self.pid}"


def claim_node() -> None:
    """From now on, what this process starts names it as its owner; what those that have ended left here is removed.

    By that name a later start finds what outlives a process that was killed, such as Ray's agents.
    """
    os.environ[OWNER] = mark()
    end_here(None)


def hear_sigterm() -> None:
    """What this thread starts from now on hears SIGTERM and SIGHUP, by which it is ended. Ray's processes do not, nor
    do its actors: see `joining`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})


def end_ray_here() -> None:
    """Kill what is left of the actors of a Ray that this process started and has ended: one that is stopped does not
    notice that its raylet is gone. Ray's agents are called as actors are, and a raylet that lives ends without them."""
    own = mark()
    for pid, owner in owned_processes():
        with suppress(ProcessLookupError, FileNotFoundError):
            if owner == own and Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                os.kill(pid, signal.SIGKILL)


def end_here(process: Whereabouts | None) -> None:
    """Kill a process of this node, whatever state it is in, and those that it started, and remove what they leave."""
    if process is not None and not is_gone(process.mark):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    end_orphans()
    remove_leftovers()
