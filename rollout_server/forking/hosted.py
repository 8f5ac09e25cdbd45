"""Inside a forked process: an object whose methods are called over the connection."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Any

from rollout_server.forking.channel import EXCHANGE, NEWS, READY, packed, read_message

Tell = Callable[[Any], None]
"""Sends news to the client, from the event loop's thread."""


def host(connection: socket.socket, make: Callable[[Tell], Any]) -> None:
    """Make an object, say how that went, and answer calls to it until the client leaves or SIGTERM comes.

    Calls overlap as far as its methods are coroutines. Its `shutdown` is called in any case.
    """
    server = _Host()
    try:
        hosted = make(server.tell)
    except Exception as error:
        connection.sendall(_answer_bytes(READY, False, error))
        return
    connection.sendall(_answer_bytes(READY, True, None))
    asyncio.run(server.serve(hosted, connection))


class _Host:
    def __init__(self) -> None:
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._writer: asyncio.StreamWriter | None = None

    def tell(self, news: Any) -> None:
        if self._writer is not None:
            self._writer.write(packed((NEWS, True, news)))

    async def serve(self, hosted: Any, connection: socket.socket) -> None:
        self._hosted = hosted
        reader, self._writer = await asyncio.open_unix_connection(sock=connection)
        listening = asyncio.create_task(self._listen(reader))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, listening.cancel)
        await asyncio.wait({listening})
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await _awaited(self._hosted.shutdown())
        self._writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            try:
                number, method, arguments, keywords = await read_message(reader)
            except EOFError:
                return
            if method is not None:
                self._calls[number] = asyncio.create_task(self._call(number, method, arguments, keywords))
            elif number in self._calls:  # the client waits no longer
                self._calls[number].cancel()

    async def _call(self, number: int, method: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        try:
            called = getattr(self._hosted, method)(*arguments, **keywords)
            answer = _answer_bytes(number, True, await _awaited(called))
        except Exception as error:
            answer = _answer_bytes(number, False, error)
        finally:
            del self._calls[number]
        assert self._writer is not None
        self._writer.write(answer)


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _answer_bytes(number: int, well: bool, value: Any) -> bytes:
    """An answer; an exception that does not survive pickling goes in words."""
    try:
        message = packed((number, well, value), os.environ.get(EXCHANGE))
        if not well:
            pickle.loads(pickle.dumps(value))
    except Exception as error:
        return packed((number, False, RuntimeError(f"{type(value).__name__}: {value} ({error})")))
    return message
