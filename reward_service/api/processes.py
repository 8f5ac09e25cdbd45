"""Several processes that take requests at one port, and the one that starts them, watches over them and ends them.

Each process has an event loop, a pool, an audit writer and a socket of its own (`SO_REUSEPORT`: the kernel deals out
connections). They share the port, the file of keys with the keys' rate limits, and the audit log, whose writers take
turns. What the settings limit is shared out among them, and each shows the metrics of all.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from reward_service.errors import ServiceStartError
from reward_service.settings import ServiceSettings

logger = logging.getLogger("uvicorn.error")

_POLL_S: Final = 0.2
_START_S: Final = 120.0
_RESTART_S: Final = 1.0
_GRACE_S: Final = 3.0
MAX_KEYS: Final = 4096
"""Keys whose rate limits are shared; of more, some share one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one of the processes is given."""

    settings: ServiceSettings
    index: int
    number: int
    listener: socket.socket
    folder: Path
    """Where the processes listen to one another."""
    rates: Any
    """Two numbers for each key's rate limit, in shared memory, with a lock."""
    supervisor_pid: int


def share_of(settings: ServiceSettings, index: int) -> ServiceSettings:
    """The settings of one process: its part of every limit on all of them."""
    number = settings.processes

    def part(whole: int) -> int:
        return max(1, whole // number + (index < whole % number))

    names = ("num_workers", "max_workers", "max_queued_items", "max_connections", "max_connections_per_address")
    update: dict[str, Any] = {name: part(getattr(settings, name)) for name in names}
    update["processes"] = 1
    update["max_bodies_bytes"] = max(settings.max_body_bytes, part(settings.max_bodies_bytes))
    if (audit := settings.audit) is not None:
        in_flight = max(2**16, part(audit.max_bytes_in_flight))
        update["audit"] = audit.model_copy(update={"max_bytes_in_flight": in_flight})
    if (judge := settings.judge) is not None:
        parts = {name: part(getattr(judge, name)) for name in ("max_concurrency", "max_waiting_items")}
        update["judge"] = judge.model_copy(update=parts)
    return settings.model_copy(update=update)


def run_processes(
    settings: ServiceSettings,
    listeners: Sequence[socket.socket],
    target: Callable[[Share, Connection], None],
    started: Callable[[], None],
    *,
    parent_pid: int | None,
) -> None:
    """Runs `target` in as many processes as there are listeners, until SIGTERM, Ctrl-C or the end of the parent.

    Args:
        settings: of the whole service.
        listeners: a bound socket for each process.
        target: runs one of them; says "" over the connection once it listens, or why it cannot.
        started: called once all of them listen.
        parent_pid: the service also ends when this process is no longer its parent.

    Raises:
        ServiceStartError: one of them cannot start.
    """
    context = multiprocessing.get_context("spawn")
    rates = context.Array("d", 2 * MAX_KEYS)
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))

    def start(index: int) -> tuple[SpawnProcess, Connection]:
        share = Share(
            settings=share_of(settings, index),
            index=index,
            number=len(listeners),
            listener=listeners[index],
            folder=Path(folder),
            rates=rates,
            supervisor_pid=os.getpid(),
        )
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=target, args=(share, theirs), name=f"reward-service-{index}")
        process.start()
        theirs.close()
        return process, ours

    def must_stop() -> bool:
        return bool(stopping) or (parent_pid is not None and os.getppid() != parent_pid)

    with TemporaryDirectory(prefix="rlvr-reward-") as folder:
        running = [start(index) for index in range(len(listeners))]
        try:
            for process, said in running:
                _wait_until_started(process, said, must_stop)
            if not must_stop():
                started()
            while not must_stop():
                wait([process.sentinel for process, _ in running], _POLL_S)
                for index, (process, _) in enumerate(running):
                    if not process.is_alive() and not must_stop():
                        logger.error("process %d of the service ended (%s); starting it again", index, process.exitcode)
                        time.sleep(_RESTART_S)
                        running[index] = start(index)
        finally:
            for listener in listeners:  # so that who comes now is refused at once, and not cut off in the end
                listener.close()
            _end([process for process, _ in running], settings.shutdown_timeout_s + _GRACE_S)


def _wait_until_started(process: SpawnProcess, said: Connection, must_stop: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while not said.poll(_POLL_S):
        if must_stop():
            return
        if time.monotonic() > deadline:
            raise ServiceStartError(f"a process of the service did not start within {_START_S:g} s")
    try:
        why = said.recv()
    except EOFError:
        process.join(_GRACE_S)
        why = f"a process of the service ended at its start with {process.exitcode}"
    if why:
        raise ServiceStartError(why)


def _end(processes: Sequence[SpawnProcess], timeout_s: float) -> None:
    """Ends them in order, and kills what has not ended in time."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + timeout_s
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
