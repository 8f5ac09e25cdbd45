"""Attacks on a service's connections, and what others find meanwhile.

`python -m tests.reward_service.door_attacks http://127.0.0.1:8300` prints what each did; for a service of one's own.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

START = b"GET /healthz HTTP/1.1\r\nhost: attacked\r\n"
WHOLE = START + b"\r\n"
PIECE = 2**16


@dataclass
class Asking:
    """What somebody found who asked `/healthz` all the while, with a new connection each time."""

    longest_s: float = 0.0
    num_answers: int = 0
    failures: list[str] = field(default_factory=list)


@contextmanager
def asking(port: int, *, every_s: float = 0.01, patience_s: float = 60.0) -> Iterator[Asking]:
    """Asks until the block ends."""
    found, done = Asking(), threading.Event()

    def ask() -> None:
        while not done.is_set():
            began = time.monotonic()
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as connection:
                    connection.sendall(WHOLE)
                    if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                        found.failures.append("no 200")
            except OSError as error:
                found.failures.append(repr(error))
            found.longest_s = max(found.longest_s, time.monotonic() - began)
            found.num_answers += 1
            done.wait(every_s)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def send_all(port: int, *pieces: bytes, timeout_s: float = 120.0) -> bytes:
    """Sends as much of the pieces as is taken, and gives the answer's first line."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            return connection.recv(4096).partition(b"\r\n")[0]
        except ConnectionResetError:
            return b"(closed)"


def one_long_header(port: int, num_bytes: int) -> bytes:
    """A single header field of so many bytes."""
    pieces = [b"x" * PIECE] * (num_bytes // PIECE)
    return send_all(port, START + b"x-long: ", *pieces, b"\r\n\r\n")


def many_headers(port: int, number: int) -> bytes:
    """So many header fields."""
    lines = [b"x-%d: y\r\n" % n for n in range(number)]
    return send_all(port, START + b"".join(lines) + b"\r\n")


def one_long_trailer(port: int, num_bytes: int) -> bytes:
    """A field of so many bytes behind a body in chunks."""
    begin = b"POST /v1/score HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nx-long: "
    return send_all(port, begin, *[b"x" * PIECE] * (num_bytes // PIECE), b"\r\n\r\n")


def stay(port: int, number: int, *, begin: bytes, drip: bytes, every_s: float, patience_s: float) -> list[float]:
    """Opens connections that send `begin` and then a `drip` now and then; seconds after which each was closed."""
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(number)]
        began, closed = time.monotonic(), dict[int, float]()
        for connection in opened:
            connection.setblocking(False)
            connection.send(begin)
        while len(closed) < number and time.monotonic() - began < patience_s:
            for index, connection in enumerate(opened):
                if index not in closed and _is_closed(connection, drip):
                    closed[index] = time.monotonic() - began
            time.sleep(every_s)
        return list(closed.values())


def _is_closed(connection: socket.socket, drip: bytes) -> bool:
    try:
        connection.send(drip)
        while data := connection.recv(4096):
            del data
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def main(url: str, slow_s: float) -> None:
    """Prints a line an attack."""
    port = int(url.rpartition(":")[2])
    for name, attack in (
        ("one header of 20 MB", lambda: one_long_header(port, 20_000_000)),
        ("one header of 60 MB", lambda: one_long_header(port, 60_000_000)),
        ("100,000 headers", lambda: many_headers(port, 100_000)),
        ("one trailer of 60 MB", lambda: one_long_trailer(port, 60_000_000)),
        ("500 heads, a byte a second", lambda: stay(port, 500, begin=START, drip=b"x", every_s=1, patience_s=slow_s)),
        ("500 that say nothing", lambda: stay(port, 500, begin=b"", drip=b"", every_s=1, patience_s=slow_s)),
        ("500 idle after an answer", lambda: stay(port, 500, begin=WHOLE, drip=b"", every_s=1, patience_s=slow_s)),
    ):
        with asking(port, patience_s=120) as others:
            began = time.monotonic()
            answer = attack()
            took_s = time.monotonic() - began
        told = {"attack": name, "took_s": round(took_s, 2), "others_longest_s": round(others.longest_s, 3)}
        told |= {"others_failed": len(others.failures), "others_answered": others.num_answers}
        if isinstance(answer, bytes):
            told["answer"] = answer.decode()
        else:
            told |= {"closed": len(answer), "last_closed_s": round(max(answer, default=0.0), 1)}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 60.0)
