"""What client, server and forked process say to each other, over a Unix socket: pickles, each after its length."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LENGTH = struct.Struct(">Q")
_ORDER_TIMEOUT_S = 30.0

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


def packed(message: Any) -> bytes:
    """A message as it goes over the wire."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


async def read_message(reader: asyncio.StreamReader) -> Any:
    """The next message.

    Raises EOFError when there is none: the other side is gone, perhaps in the middle of it.
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return pickle.loads(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError from error


def send_order(connection: socket.socket, order: Order, files: Sequence[int]) -> None:
    """Send an order, and descriptors for the new process' standard output and error."""
    message = packed(order)
    sent = socket.send_fds(connection, [message], files)
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
