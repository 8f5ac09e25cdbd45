"""The server's process: `python -m rollout_server.forking.server LISTENER_FD FOLDER MODULE…`.

It imports the modules and then forks itself for each connection. The new process leads a session of its own and talks
to the client over that connection; the server keeps a copy of it, by which it sees that the client is gone. A process
whose client is gone gets a moment to end by itself; and whatever a process leaves behind in its session is killed when
it ends, however it ends. The server ends, and its processes with it, when its standard input closes: that of the
process that started it, whether it went in order or was killed.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import os
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from rollout_server.forking.channel import ENDED, receive_order, send_if_heard

GRACE_S = 10.0
"""What a process gets to end by itself once nobody listens to it."""
HURRY_S = 2.0
"""The same where the server is told to end. Who has started it has said goodbye by then to those that are of use: what
is left hangs, or is in the middle of what was abandoned."""

_PR_SET_PDEATHSIG = 1
_STDIN = 0


@dataclass(slots=True)
class _Child:
    pid: int
    connection: socket.socket
    kill_at: float | None = None


class ForkServer:
    """Accepts, forks, and clears up; one thread, one loop. `run` returns in the forked processes never."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._children: dict[int, _Child] = {}
        self._poll = select.poll()
        self._wakeup, wakeup = socket.socketpair()
        for end in (self._wakeup, wakeup):
            end.setblocking(False)
        self._signal_end = wakeup
        self._stopping = self._told = False
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # not ignored: it shall write to the socket
        # Where it is sent to all processes of a run at once, ranks are to end their update, and then the run them.
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        for fd in (_STDIN, listener.fileno(), self._wakeup.fileno()):
            self._poll.register(fd, select.POLLIN)

    def run(self) -> None:
        """Serve until standard input closes; what comes before that is the word to hurry."""
        while not self._stopping:
            for fd, _ in self._poll.poll(self._poll_ms()):
                if fd == _STDIN:
                    self._stopping, self._told = True, bool(os.read(_STDIN, 1))
                elif fd == self._listener.fileno():
                    self._fork()
                elif fd != self._wakeup.fileno():
                    self._client_left(fd)
            with contextlib.suppress(BlockingIOError):
                self._wakeup.recv(4096)
            self._kill_overdue()
            self._reap()
        self._end_all()

    def _poll_ms(self) -> int | None:
        times = [child.kill_at for child in self._children.values() if child.kill_at is not None]
        return max(0, int(1e3 * (min(times) - time.monotonic())) + 1) if times else None

    def _fork(self) -> None:
        connection, _ = self._listener.accept()
        if (threads := os.listdir("/proc/self/task"))[1:]:
            raise RuntimeError(f"an import left {len(threads) - 1} threads behind: forking is not safe")
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(connection, server)
        self._children[pid] = _Child(pid, connection)
        self._poll.register(connection.fileno(), select.POLLRDHUP)

    def _become_child(self, connection: socket.socket, server: int) -> None:
        exit_code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))  # in order: what it started ends too
            os.setsid()
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != server:
                os._exit(1)
            for other in (self._listener, self._wakeup, self._signal_end, *self._connections()):
                other.close()
            _follow_order(connection)
            exit_code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            _leave(exit_code)

    def _connections(self) -> list[socket.socket]:
        return [child.connection for child in self._children.values()]

    def _client_left(self, fd: int) -> None:
        for child in self._children.values():
            if child.connection.fileno() == fd:
                self._poll.unregister(fd)  # it would be reported again at once
                os.kill(child.pid, signal.SIGTERM)
                child.kill_at = time.monotonic() + GRACE_S

    def _kill_overdue(self) -> None:
        for child in self._children.values():
            if child.kill_at is not None and child.kill_at <= time.monotonic():
                _kill_session(child.pid)
                child.kill_at = None

    def _reap(self) -> None:
        for child in list(self._children.values()):
            if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill_session(child.pid)  # before its number is free for others
            _, status = os.waitpid(child.pid, 0)
            with contextlib.suppress(KeyError):
                self._poll.unregister(child.connection.fileno())
            send_if_heard(child.connection, (ENDED, True, os.waitstatus_to_exitcode(status)))
            child.connection.close()
            del self._children[child.pid]

    def _end_all(self) -> None:
        for child in self._children.values():
            os.kill(child.pid, signal.SIGTERM)
        began = time.monotonic()
        while self._children and time.monotonic() - began < (HURRY_S if self._told else GRACE_S):
            time.sleep(0.02)
            self._reap()
        for child in self._children.values():
            _kill_session(child.pid)


def _follow_order(connection: socket.socket) -> None:
    order, files = receive_order(connection)
    files.insert(_STDIN, os.open(os.devnull, os.O_RDONLY))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.folder)
    module, _, function = order.target.partition(":")
    getattr(importlib.import_module(module), function)(connection, *order.arguments)


def _leave(exit_code: int) -> None:
    """End as an interpreter does, less the taking apart of all that was imported."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends
    with contextlib.suppress(BaseException):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(exit_code)


def _kill_session(leader: int) -> None:
    """A process' group is its session: vLLM's processes form no groups of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def main(words: Sequence[str]) -> None:
    """Import, then serve; the folder of the socket goes with the server."""
    listener = socket.socket(fileno=int(words[0]))
    for name in words[2:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or a collection in a forked process would copy all the pages that it shares
    ForkServer(listener).run()
    shutil.rmtree(words[1], ignore_errors=True)
    _leave(0)  # who has started it waits for its end, and all that it imported takes seconds to take apart


if __name__ == "__main__":
    main(sys.argv[1:])
