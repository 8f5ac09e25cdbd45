"""What client, server and forked process say to each other, over a Unix socket: pickles, each after its length.

A socket holds some 200 kB: what is larger would go in as many pieces, each waiting until the other process runs. It
goes as a file instead, whose name is sent, and whose reader removes it.
"""

from __future__ import annotations

import asyncio
import contextlib
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
    """Stands for a large message."""

    path: str


def packed(message: Any, exchange: str | None = None) -> bytes:
    """A message as it goes over the wire; a large one, if there is a folder for it, as a file."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    if exchange is not None and len(body) > _LARGE_BYTES and (path := _written(body, exchange)) is not None:
        body = pickle.dumps(_InFile(path))
    return _LENGTH.pack(len(body)) + body


def _written(body: bytes, folder: str) -> str | None:
    """The path of a new file; None if it cannot be written, as on a full disk."""
    path = None
    try:
        descriptor, path = tempfile.mkstemp(prefix="message-", dir=folder)
        with open(descriptor, "wb") as file:
            file.write(body)
    except OSError:
        if path is not None:
            os.unlink(path)
        return None
    return path


def _taken(path: str) -> Any:
    with open(path, "rb") as file:
        os.unlink(path)
        return pickle.load(file)


async def read_message(reader: asyncio.StreamReader) -> Any:
    """The next message.

    Raises EOFError when there is none: the other side is gone, perhaps in the middle of it.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        message = pickle.loads(await reader.readexactly(length))
        if isinstance(message, _InFile):
            message = _taken(message.path)
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
