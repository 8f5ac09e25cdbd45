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
    connections = [await asyncio.open_connection(load.host, load.port, limit=2**24) for _ in range(load.num_clients)]
    began, processor_before = time.perf_counter(), time.process_time()
    outcome = Outcome(seconds=0.0, num_items=0)
    await asyncio.gather(*(_client(load, turns, outcome, *connection, began) for connection in connections))
    outcome.processor_s = time.process_time() - processor_before
    for _, writer in connections:
        writer.close()
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


async def _client(
    load: Load,
    turns: _Turns,
    outcome: Outcome,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    began: float,
) -> None:
    """Counts what was answered within the time; what is under way at its end is waited for, but not counted."""
    number = 0
    while (sent := time.perf_counter()) - began < load.seconds:
        request, hangs = turns.next()
        writer.write(request)
        async with asyncio.timeout(load.timeout_s):
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RlvrError(f"answered {head[:200]!r}")
            lower = head.lower()
            at = lower.index(b"content-length:") + 15
            body = await reader.readexactly(int(lower[at : lower.index(b"\r", at)]))
        done = time.perf_counter()
        if hangs:
            outcome.hanging_latencies_s.append(done - sent)
        else:
            outcome.latencies_s.append(done - sent)
        if hangs or number % _CHECK_EVERY == 0:
            outcome.looked_at.append(body)
        number += 1
        if done - began <= load.seconds:
            outcome.num_items += load.batch
            outcome.seconds = max(outcome.seconds, done - began)


def _request(load: Load, body: bytes) -> bytes:
    head = (
        f"POST {load.path} HTTP/1.1\r\nhost: {load.host}:{load.port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
