"""Starting a fork server, and having processes forked by it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rollout_server.forking.channel import ENDED, EXCHANGE, HURRY, NEWS, READY, Order, packed, read_message, send_order
from rollout_server.forking.ends import describe_exit
from rollout_server.forking.leftovers import own_folder

ADDRESS = "RLVR_FORK_SERVER"
"""Where a fork server listens that a process above this one has started, with the same environment."""

_LOG_TAIL_CHARS = 1500
_SOCKET, _LOG = "socket", "log"


class ForkedProcessEndedError(RuntimeError):
    """A forked process is gone, or never came; the message says how it ended."""


class ForkServerHandle:
    """A fork server that this process started. It ends with `stop`, or with this process."""

    def __init__(self, address: str, process: subprocess.Popen[bytes]) -> None:
        self.address, self._process = address, process

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def stop(self, timeout_s: float = 15.0) -> None:
        """End the server and the processes that it forked; harmless a second time."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(HURRY)
            self._process.stdin.close()
        self._process.terminate()  # in the middle of its imports it looks at nothing else
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout_s)
        shutil.rmtree(Path(self.address).parent, ignore_errors=True)


def start_fork_server(modules: Sequence[str], environment: Mapping[str, str]) -> ForkServerHandle:
    """Start a server that imports `modules`; returns at once. Who asks it meanwhile waits for the imports."""
    folder = own_folder("fork", longest_name=len(_SOCKET))  # for this user only, and so is what lies in it
    with socket.socket(socket.AF_UNIX) as listener, (folder / _LOG).open("wb") as log:
        listener.bind(str(folder / _SOCKET))
        listener.listen(128)
        number = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "rollout_server.forking.server", str(number), str(folder), *modules],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=(number,),
            env=environment,
            start_new_session=True,  # a Ctrl-C is for the process that started it
        )
    return ForkServerHandle(str(folder / _SOCKET), process)


def is_served(address: str) -> bool:
    """Whether a fork server listens there: one that was killed leaves its socket."""
    listening = (line.split() for line in Path("/proc/net/unix").read_text(errors="replace").splitlines())
    return any(fields[-1] == address for fields in listening)


class ForkedProcess:
    """An object in a process of its own, made by the fork server at `address`. It may tell `on_news` things."""

    def __init__(self, address: str, on_news: Callable[[Any], None]) -> None:
        self._address, self._on_news = address, on_news
        self._exchange = str(Path(address).parent)
        self._numbers = itertools.count(READY + 1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._ended: str | None = None

    async def start(self, target: str, *arguments: Any) -> None:
        """Returns when `target` has made its object; raises what that raised, or ForkedProcessEndedError.

        The process gets this one's environment, folder, standard output and error.
        """
        environment = {**os.environ, EXCHANGE: self._exchange}
        order = Order(target=target, arguments=arguments, environment=environment, folder=os.getcwd())
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self._address)
            send_order(connection, order, (1, 2))
        except OSError as error:
            connection.close()
            raise ForkedProcessEndedError(f"no fork server answers at {self._address}: {error}") from error
        connection.setblocking(False)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=connection)
        ready = self._waiting[READY] = asyncio.get_running_loop().create_future()
        self._listening = asyncio.create_task(self._listen())
        try:
            await ready
        except BaseException:
            await self.close()
            raise

    async def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Call a method there. Raises what it raises, or ForkedProcessEndedError. Cancelled, it is cancelled there."""
        if self._ended is not None:
            raise ForkedProcessEndedError(self._ended)
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(packed((number, method, arguments, keywords), self._exchange))
        try:
            return await future
        except asyncio.CancelledError:
            self._writer.write(packed((number, None, (), {})))
            raise
        finally:
            self._waiting.pop(number, None)

    async def close(self, timeout_s: float = 15.0) -> None:
        """Say that nobody listens any more, and wait for the end of the process, which the server sees to."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(self._listening)
        self._listening.cancel()
        self._writer.close()

    async def _listen(self) -> None:
        try:
            while self._ended is None:
                number, well, value = await read_message(self._reader)
                if number == NEWS:
                    self._on_news(value)
                elif number == ENDED:
                    self._ended = f"it {describe_exit(value)}"
                elif (future := self._waiting.get(number)) is not None and not future.done():
                    future.set_result(value) if well else future.set_exception(value)
        except EOFError:
            self._ended = f"its fork server is gone; {_log_tail(self._address)}"
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ForkedProcessEndedError(self._ended or "it ended"))


def _log_tail(address: str) -> str:
    try:
        log = Path(address).with_name(_LOG).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "its log is gone with it"
    return f"the end of its log: {' '.join(log[-_LOG_TAIL_CHARS:].split()) or '(empty)'}"
