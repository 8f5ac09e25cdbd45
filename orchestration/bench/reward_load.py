"""The load of `rlvr bench reward`: clients in a process of their own, as cheap as they can be.

Each client has one connection and one request under way. Requests are made before anything is measured, and answers
are only read to their end, except the ones that are looked at: a client that took as long as the server would measure
itself.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import uvloop

from orchestration.errors import RlvrError

_CHECK_EVERY: Final = 64
"""Every so many answers one is looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What is sent, and for how long."""

    host: str
    port: int
    path: str
    bodies: tuple[bytes, ...]
    """Sent in turn; all of `batch` items."""
    batch: int
    num_clients: int
    seconds: float
    hanging: tuple[bytes, ...] = ()
    """Bodies of which one is sent, in turn, for every `hang_every` items."""
    hang_every: int = 10_000
    timeout_s: float = 60.0


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What came back."""

    seconds: float
    num_items: int
    latencies_s: list[float] = field(default_factory=list)
    """Of requests without a hanging item."""
    hanging_latencies_s: list[float] = field(default_factory=list)
    processor_s: float = 0.0
    """What the clients took of a processor."""
    looked_at: list[bytes] = field(default_factory=list)
    """Some of the answers, and all to requests with a hanging item."""

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def run_load(load: Load) -> Outcome:
    """Run a load in a new process.

    Raises:
        RlvrError: The process failed, died, or did not end in time.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_main, args=(load, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(load.seconds + load.timeout_s + 30):
            raise RlvrError(f"the load on {load.path} did not end")
        answer = ours.recv()
    except EOFError:
        raise RlvrError("the process that makes the load died") from None
    finally:
        process.kill()
        process.join(10)
    if isinstance(answer, str):
        raise RlvrError(f"the load on {load.path} failed: {answer}")
    assert isinstance(answer, Outcome)
    return answer


def _main(load: Load, connection: Any) -> None:
    try:
        connection.send(uvloop.run(_run(load)))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


async def _run(load: Load) -> Outcome:
    requests = [_request(load, body) for body in load.bodies]
    hanging = [_request(load, body) for body in load.hanging]
    turns = _Turns(load, requests, hanging)
    loop, outcome = asyncio.get_running_loop(), Outcome(seconds=0.0, num_items=0)
    clients = [
        (await loop.create_connection(lambda: _Client(load, turns, outcome), load.host, load.port))[1]
        for _ in range(load.num_clients)
    ]
    began, processor_before = time.perf_counter(), time.process_time()
    for client in clients:
        client.begin(began)
    async with asyncio.timeout(load.seconds + load.timeout_s):
        await asyncio.gather(*(client.ended for client in clients))
    outcome.processor_s = time.process_time() - processor_before
    for client in clients:
        client.close()
    return outcome


class _Turns:
    """Which request is next."""

    def __init__(self, load: Load, requests: Sequence[bytes], hanging: Sequence[bytes]) -> None:
        self._load, self._requests, self._hanging = load, requests, hanging
        self._sent = 0
        self._hung = 0

    def next(self) -> tuple[bytes, bool]:
        self._sent += 1
        if self._hanging and self._sent * self._load.batch >= (self._hung + 1) * self._load.hang_every:
            self._hung += 1
            return self._hanging[self._hung % len(self._hanging)], True
        return self._requests[self._sent % len(self._requests)], False


class _Client(asyncio.Protocol):
    """One connection. Counts what was answered within the time; what is under way at its end is waited for, but not
    counted."""

    def __init__(self, load: Load, turns: _Turns, outcome: Outcome) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        self._load, self._turns, self._outcome = load, turns, outcome
        self._number = self._length = 0
        self._answer = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def begin(self, now: float) -> None:
        self._began = now
        self._send(now)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._length:
            self._length = self._length_of_answer()
        if self._length and len(self._answer) >= self._length:
            answer, self._answer, self._length = self._answer, b"", 0
            self._take(answer, time.perf_counter())

    def connection_lost(self, error: Exception | None) -> None:
        self._fail("the server closed the connection")

    def _send(self, now: float) -> None:
        request, self._hangs = self._turns.next()
        self._sent = now
        self._transport.write(request)

    def _length_of_answer(self) -> int:
        """Of head and body; 0: not known yet."""
        end = self._answer.find(b"\r\n\r\n")
        if end < 0:
            return 0
        head = self._answer[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            self._fail(f"answered {self._answer[:200]!r}")
            return 0
        _, _, length = head.partition(b"content-length:")
        return end + 4 + int(length.partition(b"\r")[0])

    def _take(self, answer: bytes, now: float) -> None:
        outcome, load = self._outcome, self._load
        (outcome.hanging_latencies_s if self._hangs else outcome.latencies_s).append(now - self._sent)
        if self._hangs or self._number % _CHECK_EVERY == 0:
            outcome.looked_at.append(answer.partition(b"\r\n\r\n")[2])
        self._number += 1
        if now - self._began > load.seconds:
            self.ended.set_result(None)
            return
        outcome.num_items += load.batch
        outcome.seconds = max(outcome.seconds, now - self._began)
        self._send(now)

    def _fail(self, why: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(RlvrError(why))


def _request(load: Load, body: bytes) -> bytes:
    head = (
        f"POST {load.path} HTTP/1.1\r\nhost: {load.host}:{load.port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
