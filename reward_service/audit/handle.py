"""The server's end of the audit log: hands decisions to the writer process without waiting, and knows how far it is."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Self, cast

import msgspec

from reward_service.audit.records import Head
from reward_service.audit.settings import AuditSettings
from reward_service.audit.wire import FLUSH, AuditBatch, FrameReader, Start, Status, frame
from reward_service.errors import AuditError, AuditUnavailableError

logger = logging.getLogger(__name__)

_FIRST_DELAY_S: Final = 0.2
_LAST_DELAY_S: Final = 30.0
_END_S: Final = 5.0

_statuses = msgspec.msgpack.Decoder(Status)


class AuditHandle:
    """Hands batches to a writer process; for one event loop. Made by `start`, ended by `close`.

    What is offered is held until the writer says that it is committed. If the writer dies it is started again and gets
    what was not committed, once; until then, and while the database refuses, `offer` and `room` raise.
    """

    def __init__(self, settings: AuditSettings, *, service_version: str) -> None:
        self._settings = settings
        self._start = Start(settings.model_dump_json(), secrets.token_hex(16), service_version)
        self._unacked: deque[bytes] = deque()
        self._in_flight = 0
        self._reserved = 0
        self._sent = 0
        self._committed = 0
        self._head = Head(0, "")
        self._failed: str | None = "the audit writer has not started"
        self._changed = asyncio.Event()
        self._link: _Link | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, settings: AuditSettings, *, service_version: str) -> Self:
        """Starts the writer and waits until the log is open; AuditError if it cannot be."""
        handle = cls(settings, service_version=service_version)
        await handle._connect()
        handle._supervisor = asyncio.create_task(handle._supervise(), name="audit writer's supervisor")
        return handle

    @property
    def failed(self) -> str | None:
        """Why nothing can be recorded now; None if all is well."""
        return self._failed

    @property
    def head(self) -> Head:
        """The last record that this service knows to be committed."""
        return self._head

    @property
    def bytes_in_flight(self) -> int:
        """Bytes handed over and not known to be committed."""
        return self._in_flight

    @property
    def writer_pid(self) -> int | None:
        """Id of the writer process."""
        return None if self._process is None else self._process.pid

    def offer(self, batch: AuditBatch) -> None:
        """Hands over the decisions of one request; does not wait.

        Raises AuditUnavailableError if they cannot be recorded: the request must not be answered then. What bounds the
        bytes in flight is `room`.
        """
        self._require_working()
        data = frame(batch)
        self._unacked.append(data)
        self._in_flight += len(data)
        self._sent += 1
        assert self._link is not None
        self._link.write(data)

    @asynccontextmanager
    async def room(self, num_bytes: int) -> AsyncIterator[None]:
        """Waits, before a request is worked on, until its decisions can be handed over when they are there.

        About `num_bytes` are kept free for them until the block ends: requests under way at once would otherwise find
        the room taken by one another. Raises AuditUnavailableError if the writer has failed or does not catch up
        within `room_timeout_s`.
        """
        limit = self._settings.max_bytes_in_flight

        def fits() -> bool:
            held = self._in_flight + self._reserved
            return held == 0 or held + num_bytes <= limit

        if self._failed is not None or not fits():
            await self._until(fits, self._settings.room_timeout_s)
        self._reserved += num_bytes
        try:
            yield
        finally:
            self._reserved -= num_bytes
            self._wake()

    async def flush(self, timeout_s: float) -> None:
        """Waits until everything offered so far is committed; AuditUnavailableError if it is not in time."""
        self._require_working()
        target = self._sent
        if self._committed < target:
            assert self._link is not None
            self._link.write(FLUSH)
            await self._until(lambda: self._committed >= target, timeout_s)

    async def close(self, timeout_s: float = 10.0) -> None:
        """Lets the writer commit what it has and end; AuditError if something is not committed in time.

        A writer that is dead, or does not end in half of the time that is left, is started again for what it did not
        commit.
        """
        deadline = time.monotonic() + timeout_s
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        why = self._failed
        while True:
            why = await self._finish(deadline - time.monotonic()) or why
            if not self._unacked or time.monotonic() + _FIRST_DELAY_S >= deadline:
                break
            await asyncio.sleep(_FIRST_DELAY_S)
        self._failed = "the audit log is closed"
        self._wake()
        if self._unacked:
            raise AuditError(f"the decisions of {len(self._unacked)} requests are not in the audit log: {why}")

    async def _finish(self, left_s: float) -> str | None:
        """Ends the writer, another one if it is dead and did not commit all; why that failed."""
        try:
            async with asyncio.timeout(left_s):
                if self._link is not None and self._link.lost.done():
                    await self._end_process()
                if self._link is None and self._unacked:
                    await self._connect()
        except (AuditError, TimeoutError) as error:
            return str(error) or "the audit writer did not start in time"
        if self._link is None or self._process is None:
            return None
        self._link.write_eof()
        why = None
        try:
            async with asyncio.timeout(left_s / 2):
                await asyncio.shield(self._link.lost)
        except TimeoutError:
            why = self._failed or f"the audit writer did not end within {left_s / 2:.2g} s"
            self._process.kill()
        await self._end_process()
        return why

    def _require_working(self) -> None:
        if self._failed is not None:
            raise AuditUnavailableError(f"decisions cannot be recorded: {self._failed}")

    async def _until(self, condition: Callable[[], bool], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._require_working()
                    if condition():
                        return
                    await self._changed.wait()
        except TimeoutError:
            raise AuditUnavailableError(
                f"the audit log is {self._in_flight} bytes behind after {timeout_s:g} s; try again later"
            ) from None

    async def _connect(self) -> None:
        """Starts a writer, waits for its first word, and gives it what is not committed."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = _spawn(theirs)
            except OSError as error:
                ours.close()
                raise AuditError(f"cannot start the audit writer: {error}") from None
        loop = asyncio.get_running_loop()
        hello: asyncio.Future[Status] = loop.create_future()
        _, link = await loop.create_unix_connection(lambda: _Link(hello, self._on_status, self._on_lost), sock=ours)
        link.write(frame(self._start))
        try:
            await asyncio.wait(
                (hello, link.lost), timeout=self._settings.start_timeout_s, return_when="FIRST_COMPLETED"
            )
            if not hello.done():
                end = "ended at once" if link.lost.done() else f"said nothing in {self._settings.start_timeout_s:g} s"
                raise AuditError(f"the audit writer {end}; its output says more")
            status = hello.result()
            if status.failed is not None:
                raise AuditError(status.failed)
        except BaseException:
            link.abort()
            self._process.kill()
            await self._end_process()
            raise
        self._link = link
        self._on_status(status)
        for data in self._unacked:
            link.write(data)

    def _on_status(self, status: Status) -> None:
        self._failed = status.failed
        if status.failed is None:
            self._head = Head(status.seq, status.hash)
        while self._committed < status.committed:
            self._in_flight -= len(self._unacked.popleft())
            self._committed += 1
        self._wake()

    def _on_lost(self) -> None:
        self._failed = "the audit writer died; it is being started again"
        self._wake()

    async def _supervise(self) -> None:
        """Waits for the writer to die, and starts another until one works."""
        while True:
            assert self._link is not None
            await asyncio.shield(self._link.lost)
            code = await self._end_process()
            logger.error("the audit writer died with exit code %s; starting it again", code)
            delay_s = _FIRST_DELAY_S
            while True:
                await asyncio.sleep(delay_s)
                try:
                    await self._connect()
                    break
                except AuditError as error:
                    self._failed = str(error)
                    logger.error("the audit writer cannot start: %s", error)
                    delay_s = min(2 * delay_s, _LAST_DELAY_S)

    async def _end_process(self) -> int:
        """Waits for the writer, whose socket is closed, to be gone; kills it if it will not."""
        assert self._process is not None
        process = self._process
        if self._link is not None:
            self._link.abort()
            self._link = None
        try:
            return await asyncio.to_thread(process.wait, _END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return await asyncio.to_thread(process.wait, _END_S)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _spawn(link: socket.socket) -> subprocess.Popen[bytes]:
    """Takes milliseconds, so the loop may wait. A session of its own: Ctrl-C is the server's business."""
    command = [sys.executable, "-m", "reward_service.audit.writer", str(link.fileno())]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(link.fileno(),), start_new_session=True)


class _Link(asyncio.Protocol):
    """The socket to a writer."""

    def __init__(
        self, hello: asyncio.Future[Status], on_status: Callable[[Status], None], on_lost: Callable[[], None]
    ) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hello = hello
        self._on_status = on_status
        self._on_lost = on_lost
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        for message in self._frames.feed(data):
            status = _statuses.decode(message)
            if self._hello.done():
                self._on_status(status)
            else:
                self._hello.set_result(status)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(None)
        self._on_lost()

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def write_eof(self) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()
