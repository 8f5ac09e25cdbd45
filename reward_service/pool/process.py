"""One worker process as the server sees it: its socket on the event loop, its progress, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Final, NamedTuple, cast

from reward_service.pool.messages import Batch, Job, decode_batch, encode_job
from reward_service.pool.processor import ProcessorClock, Usage
from reward_service.settings import ServiceSettings

_HEADER: Final = struct.Struct("!i")  # how multiprocessing frames messages of less than 2 GiB
_LONG_HEADER: Final = struct.Struct("!iQ")
_MORE_NICE: Final = 19


class Position(NamedTuple):
    """What a worker is at."""

    item: int
    reward: int
    elapsed_s: float


class WorkerProcess(asyncio.Protocol):
    """A worker that was started. Calls `on_ready`, `on_batch` and, once, `on_end` with what became of it."""

    def __init__(
        self,
        process: ForkServerProcess,
        progress: list[float],
        on_ready: Callable[[WorkerProcess], None],
        on_batch: Callable[[WorkerProcess, Batch], None],
        on_end: Callable[[WorkerProcess], None],
    ) -> None:
        self._process, self._progress = process, progress
        self._on_ready, self._on_batch, self._on_end = on_ready, on_batch, on_end
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self.num_items = 0
        """Items it was given so far."""
        self.demoted = False
        self.was_ready = False
        self.excused_s = 0.0
        """Seconds of its item, as far as it was looked at, in which it waited for a processor that others had."""
        self._clock = ProcessorClock(self.pid)
        self._at: tuple[float, float] | None = None
        """The item that was looked at last."""
        self._first = self._last = (time.monotonic(), Usage(0.0, 0.0))
        """When that item was looked at for the first and for the last time, and the worker's usage then."""
        self._by_children_s = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def send(self, job: Job) -> None:
        assert self._transport is not None
        self.num_items += len(job.items)
        data = encode_job(job)
        header = _HEADER.pack(len(data)) if len(data) < 2**31 else _LONG_HEADER.pack(-1, len(data))
        self._transport.writelines((header, data))

    def position(self) -> Position | None:
        """What it is at; None between jobs."""
        code, since = self._read_progress()
        if code < 0:
            return None
        item, reward = divmod(int(code), 64)
        return Position(item, reward, time.monotonic() - since)

    def look(self, *, excuse: bool) -> float:
        """Reads what it got of the processors; to be called every now and then while it has a job.

        Args:
            excuse: whether its waiting since the last look is not the item's fault. All of it counts for the item it is
                at now, rather too much than too little.

        Returns:
            Seconds that it waited since the last look, if they are excused.
        """
        now, at = time.monotonic(), self._read_progress()
        usage = self._clock.read(now)
        waited_s = usage.waited_s - self._last[1].waited_s if excuse else 0.0
        self._last = (now, usage)
        if at != self._at:
            self._at, self._first, self.excused_s, self._by_children_s = at, self._last, 0.0, 0.0
        self.excused_s += waited_s
        return waited_s

    def excuse_children(self, waited_s: float) -> float:
        """Takes in how long all its living descendants waited for a processor; gives by how much that is more."""
        more_s = max(0.0, waited_s - self._by_children_s)
        self._by_children_s = waited_s
        self.excused_s += more_s
        return more_s

    @property
    def ran_s(self) -> float:
        """Seconds that it had a processor for its item, as far as it was looked at."""
        return self._last[1].ran_s - self._first[1].ran_s if self._at == self._read_progress() else 0.0

    @property
    def idle_s(self) -> float:
        """Seconds that it wanted no processor for its item, as far as it was looked at."""
        if self._at != self._read_progress():
            return 0.0
        (first_at, first), (last_at, last) = self._first, self._last
        return last_at - first_at - (last.ran_s - first.ran_s) - (last.waited_s - first.waited_s)

    def _read_progress(self) -> tuple[float, float]:
        while True:
            code, since = self._progress[1], self._progress[0]
            if code == self._progress[1]:
                return code, since

    def demote(self) -> None:
        """Leaves the processor to the others; for good, as only root could take that back."""
        self.demoted = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PROCESS, self.pid, os.getpriority(os.PRIO_PROCESS, self.pid) + _MORE_NICE)

    def kill(self) -> None:
        """Ends it at once, whatever it does; `on_end` follows."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()

    def let_go(self) -> None:
        """Closes its socket: an idle worker ends by itself; `on_end` follows."""
        if self._transport is not None:
            self._transport.close()

    def reap(self, timeout_s: float) -> int | None:
        """Waits, in a thread, for its end; its exit code, negative for a signal, or None if it is not known."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join(timeout_s)
        code = self._process.exitcode
        self._process.close()
        return code

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of its subclasses

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer)
            if length < 0:  # no batch is that long: what speaks there is no longer our code
                self.kill()
                return
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            message = bytes(memoryview(self._buffer)[_HEADER.size : end])
            del self._buffer[:end]
            if not message:
                self._on_ready(self)
                continue
            try:
                batch = decode_batch(message)
            except ValueError:
                self.kill()
                return
            self._on_batch(self, batch)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_end(self)


class WorkerFactory:
    """Starts workers from a server of forks, which imports what rewards need once."""

    def __init__(self, settings: ServiceSettings, preload: list[str]) -> None:
        self._settings_json = settings.model_dump_json()
        self._context: ForkServerContext = get_context("forkserver")
        self._context.set_forkserver_preload(["reward_service.pool.farewell", "reward_service.pool.worker", *preload])

    async def start(
        self,
        on_ready: Callable[[WorkerProcess], None],
        on_batch: Callable[[WorkerProcess, Batch], None],
        on_end: Callable[[WorkerProcess], None],
    ) -> WorkerProcess:
        """A worker whose process exists; `on_ready` is called when it can take a job."""
        from reward_service.pool.worker import main  # with the rewards, which are the workers' business

        ours, theirs = self._context.Pipe(duplex=True)
        progress = self._context.RawArray("d", [0.0, -1.0])
        process = self._context.Process(
            target=main, args=(theirs, progress, self._settings_json, os.getpid()), daemon=True, name="reward-worker"
        )
        try:
            await asyncio.to_thread(process.start)
        finally:
            theirs.close()
        ours_socket = socket.socket(fileno=os.dup(ours.fileno()))
        ours.close()
        ours_socket.setblocking(False)
        worker = WorkerProcess(process, progress, on_ready, on_batch, on_end)
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours_socket)
        return worker
