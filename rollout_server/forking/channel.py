"""What client, server and forked process say to each other, over a Unix socket: pickles, each after its length.

A socket holds some 200 kB: what is larger would go in as many pieces, each waiting until the other process runs. It
goes as a file instead, whose name is sent, and whose reader removes it. Large bytes that a pickle lets go beside it
(`pickle.PickleBuffer`) are written as they are, and are views of the file where they are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import mmap
import os
import pickle
import socket
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LENGTH = struct.Struct(">Q")
_ORDER_TIMEOUT_S = 30.0
_LARGE_BYTES = 1 << 20

EXCHANGE = "RLVR_FORK_EXCHANGE"
"""Variable of a forked process: the folder of large messages, which goes with the server."""

READY = 0
"""Number of the answer that says how the start went; calls are numbered from 1."""
NEWS = -2
"""Number of what a forked process says unasked."""
ENDED = -1
"""Number of the server's own message: the process ended, with this exit code."""


HURRY = b"!"
"""On the server's standard input, before that closes: nobody needs its processes any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """What a forked process is to be."""

    target: str
    """`module:function`; called with the connection and the arguments."""
    arguments: tuple[Any, ...]
    environment: Mapping[str, str]
    folder: str


@dataclass(frozen=True, slots=True)
class _InFile:
    """Stands for a large message: its pickle and what goes beside it, one behind the other."""

    path: str
    sizes: tuple[int, ...]


def packed(message: Any, exchange: str | None = None) -> bytes:
    """A message as it goes over the wire; a large one, if there is a folder for it, as a file."""
    if exchange is not None:
        beside: list[memoryview] = []
        body = pickle.dumps(message, protocol=5, buffer_callback=lambda buffer: not _goes_beside(buffer, beside))
        if not beside and len(body) <= _LARGE_BYTES:
            return _framed(body)
        pieces = (memoryview(body), *beside)
        if (path := _written(pieces, exchange)) is not None:
            return _framed(pickle.dumps(_InFile(path, tuple(piece.nbytes for piece in pieces))))
    return _framed(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def _goes_beside(buffer: pickle.PickleBuffer, beside: list[memoryview]) -> bool:
    """Large bytes do. What can be written to does not: a view of a file could not be."""
    raw = buffer.raw()
    if not raw.readonly or raw.nbytes < _LARGE_BYTES:
        return False
    beside.append(raw)
    return True


def _framed(body: bytes) -> bytes:
    return _LENGTH.pack(len(body)) + body


def _written(pieces: Sequence[memoryview], folder: str) -> str | None:
    """The path of a new file; None if it cannot be written, as on a full disk."""
    path = None
    try:
        descriptor, path = tempfile.mkstemp(prefix="message-", dir=folder)
        with open(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
    except OSError:
        if path is not None:
            os.unlink(path)
        return None
    return path


def _taken(message: _InFile) -> Any:
    with open(message.path, "rb") as file:
        os.unlink(message.path)
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    ends = list(itertools.accumulate(message.sizes))
    head, *beside = (whole[end - size : end] for size, end in zip(message.sizes, ends, strict=True))
    return pickle.loads(head, buffers=beside)


async def read_message(reader: asyncio.StreamReader) -> Any:
    """The next message.

    Raises EOFError when there is none: the other side is gone, perhaps in the middle of it.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        message = pickle.loads(await reader.readexactly(length))
        if isinstance(message, _InFile):
            message = _taken(message)
    except (asyncio.IncompleteReadError, ConnectionError, FileNotFoundError) as error:
        raise EOFError from error
    return message


def send_order(connection: socket.socket, order: Order, files: Sequence[int]) -> None:
    """Send an order, and descriptors for the new process' standard output and error."""
    message = packed(order)
    sent = socket.send_fds(connection, [message], files)
    if sent < len(message):  # nothing more would still be sent, to a process that may have ended by now
        connection.sendall(message[sent:])


def receive_order(connection: socket.socket) -> tuple[Order, list[int]]:
    """The order a process was forked for. Raises EOFError or TimeoutError when it does not come."""
    connection.settimeout(_ORDER_TIMEOUT_S)
    data, files, _, _ = socket.recv_fds(connection, 1 << 16, 2)
    while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
        more = connection.recv(1 << 16)
        if not more:
            raise EOFError
        data += more
    connection.settimeout(None)
    order: Order = pickle.loads(data[_LENGTH.size :])
    return order, files


def send_if_heard(connection: socket.socket, message: Any) -> None:
    """Send without waiting; a client that is gone or does not read misses it."""
    connection.setblocking(False)
    with contextlib.suppress(OSError):
        connection.send(packed(message))
