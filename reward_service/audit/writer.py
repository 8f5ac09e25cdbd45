"""The process that writes the audit log: `python -m reward_service.audit.writer FD`, started by `handle.AuditHandle`.

It takes messages from a socket, hashes and chains, and commits when `flush_s` has passed or `flush_records` wait. While
the database refuses (a full disk, a server that is gone) it says so, keeps what it has and tries again every second;
it reads no further meanwhile, so that the server sees how far behind it is. It ends, after a last commit, when the
socket does: that is how it sees that the server died.

Signals that end the server (Ctrl-C, SIGTERM to the whole group) it ignores, as the server still has to hand over what
it has accepted.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable
from typing import Final

import msgspec

from reward_service.audit.records import Head, Values, read_key, values_of
from reward_service.audit.rotation import maintain
from reward_service.audit.settings import AuditSettings
from reward_service.audit.store import AuditStore
from reward_service.audit.wire import FrameReader, ReceivedBatch, Start, Status, frame
from reward_service.errors import AuditError

logger = logging.getLogger(__name__)

_RECEIVE_BYTES: Final = 2**20
_COMMIT_BYTES: Final = 16 * 2**20  # of messages; commits earlier than flush_records where texts are long
_RETRY_S: Final = 1.0
_IDLE_S: Final = 1.0
_MAINTAIN_S: Final = 5.0

_batches = msgspec.msgpack.Decoder(ReceivedBatch)


class Writer:
    """Receives, chains, commits; one thread."""

    def __init__(self, link: socket.socket, frames: FrameReader, start: Start, *, parent_pid: int) -> None:
        self._settings = AuditSettings.model_validate_json(start.settings)
        self._session = start.session
        self._service_version = start.service_version
        self._link = link
        self._frames = frames
        self._received = bytearray(_RECEIVE_BYTES)
        self._parent_pid = parent_pid
        self._pending: list[Values] = []
        self._pending_bytes = 0
        self._messages = 0
        self._committed = 0
        self._commit_at: float | None = None
        self._store: AuditStore | None = None
        self._maintain_at = 0.0
        self._maintenance: threading.Thread | None = None

    def open(self) -> None:
        """Opens the log, making it if need be, and says how far it is; AuditError if it cannot be."""
        key = read_key(self._settings.hmac_key_file)
        self._store = AuditStore.of(self._settings, key)
        head = self._store.create()
        self._messages = self._committed = self._store.committed_messages(self._session)
        self._tell(head)

    def run(self, early: list[bytes]) -> None:
        """Until the socket ends; AuditError if what is left then cannot be committed."""
        flush = self._take(early)
        ended = False
        while True:
            due = self._commit_at is not None and time.monotonic() >= self._commit_at
            full = len(self._pending) >= self._settings.flush_records or self._pending_bytes >= _COMMIT_BYTES
            if self._messages > self._committed and (flush or ended or due or full):
                self._commit()
            if ended:
                if self._maintenance is not None:
                    self._maintenance.join(self._settings.drain_timeout_s)
                return
            self._maintain()
            flush = False
            wait_s = _IDLE_S if self._commit_at is None else max(0.0, self._commit_at - time.monotonic())
            if select.select([self._link], [], [], wait_s)[0]:
                data = _receive(self._link, self._received)
                ended = not data
                flush = self._take(self._frames.feed(data))
            elif self._orphaned():
                ended = True

    def _maintain(self) -> None:
        """Rotates and removes beside the writing, in a thread with a connection of its own."""
        settings, now = self._settings, time.monotonic()
        if (settings.rotate_mb is None and settings.keep_days is None) or now < self._maintain_at:
            return
        if self._maintenance is None or not self._maintenance.is_alive():
            self._maintain_at = now + _MAINTAIN_S
            key = None if self._store is None else self._store.key
            self._maintenance = threading.Thread(target=maintain, args=(settings, key), daemon=True)
            self._maintenance.start()

    def _take(self, frames: Iterable[bytes]) -> bool:
        """Takes messages in; whether one of them asked for a commit."""
        flush = False
        for message in frames:
            if not message:
                flush = True
                continue
            batch = _batches.decode(message)
            keep_text = self._settings.keep_text
            self._pending.append(values_of(batch, service_version=self._service_version, keep_text=keep_text))
            self._pending_bytes += len(message)
            self._messages += 1
            if self._commit_at is None:
                self._commit_at = time.monotonic() + self._settings.flush_s
        return flush

    def _commit(self) -> None:
        assert self._store is not None
        give_up_at: float | None = None
        while True:
            try:
                head = self._store.append(self._pending, session=self._session, messages=self._messages)
                break
            except AuditError as error:
                logger.error("%s; %d records wait", error, len(self._pending))
                self._tell(Head(0, ""), failed=str(error))
                if self._orphaned():
                    now = time.monotonic()
                    give_up_at = now + self._settings.drain_timeout_s if give_up_at is None else give_up_at
                    if now >= give_up_at:
                        raise AuditError(
                            f"{error}; the service has ended, {len(self._pending)} records are lost"
                        ) from None
                time.sleep(_RETRY_S)
        self._pending = []
        self._pending_bytes = 0
        self._committed = self._messages
        self._commit_at = None
        self._tell(head)

    def _tell(self, head: Head, *, failed: str | None = None) -> None:
        # If the server is gone, what it handed over is committed all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._link.sendall(frame(Status(self._committed, head.seq, head.hash, failed)))

    def _orphaned(self) -> bool:
        return os.getppid() != self._parent_pid


def main(descriptor: int) -> int:
    """Runs a writer on an inherited socket; the exit code says whether all was committed."""
    parent_pid = os.getppid()
    logging.basicConfig(level=logging.WARNING, format="audit writer: %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # its share, but in larger pieces: who waits for an answer is not interrupted
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    gc.set_threshold(200_000, 50, 50)  # what it makes by the thousand has no cycles
    link = socket.socket(fileno=descriptor)
    reader = FrameReader()
    received, buffer = list[bytes](), bytearray(_RECEIVE_BYTES)
    while not received:
        data = _receive(link, buffer)
        if not data:
            return 0  # the server ended before it said anything
        received += reader.feed(data)
    writer = Writer(link, reader, msgspec.msgpack.decode(received[0], type=Start), parent_pid=parent_pid)
    try:
        writer.open()
    except AuditError as error:
        link.sendall(frame(Status(0, 0, "", str(error))))
        return 1
    try:
        writer.run(received[1:])
    except AuditError as error:
        logger.error("%s", error)
        return 1
    return 0


def _receive(link: socket.socket, buffer: bytearray) -> memoryview:
    """What has come, in the buffer; empty when the other end is gone, in whichever way."""
    try:
        return memoryview(buffer)[: link.recv_into(buffer)]
    except ConnectionResetError:
        return memoryview(b"")


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
