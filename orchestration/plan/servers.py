"""Engines and the learner as queues: what is under way shares one pace, and all pace is lost to a neighbour's share."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Group:
    left: int
    done: asyncio.Future[None]


@dataclass(slots=True, order=True)
class _Job:
    ends: float
    """Tick at which it is done."""
    group: _Group = field(compare=False)


class Site:
    """Processors that several servers use in turn: each busy one gets an equal share of the time."""

    def __init__(self) -> None:
        self.servers: list[Server] = []

    def changed(self) -> None:
        """One of them became busy or idle."""
        busy = max(1, sum(server.busy for server in self.servers))
        for server in self.servers:
            server.set_share(1 / busy)


class Server:
    """Ticks while it has work. Each job under way gets one unit a tick; a tick takes longer the more there are.

    An engine's unit is a token and its tick an engine step; the learner's is a second of an update.

    Args:
        tick_s: Seconds of a tick with so many jobs under way, when nothing else uses the processors.
        slots: Jobs under way at once; others wait in order.
        sites: What it shares with other servers. The slowest site counts.
    """

    def __init__(self, tick_s: Callable[[int], float], slots: int, sites: Sequence[Site] = ()) -> None:
        self._tick_s, self._slots, self._sites = tick_s, slots, sites
        self._loop = asyncio.get_running_loop()
        self._running: list[_Job] = []
        self._waiting: deque[tuple[float, _Group]] = deque()
        self._ticks = self._debt_s = self._since = 0.0
        self._share = 1.0
        self._timer: asyncio.TimerHandle | None = None
        self.busy_s = 0.0
        for site in sites:
            site.servers.append(self)

    @property
    def busy(self) -> bool:
        return bool(self._running)

    async def work(self, units: Sequence[float], *, extra_s: float = 0.0) -> None:
        """Do these jobs; all others wait for `extra_s`, which comes first (an engine's prefill)."""
        if not units:
            return
        group = _Group(len(units), self._loop.create_future())
        self._advance()
        was_busy = self.busy
        self._debt_s += extra_s
        self._waiting.extend((unit, group) for unit in units)
        self._fill()
        self._schedule()
        if not was_busy:
            self._tell()
        await group.done

    def set_share(self, share: float) -> None:
        """Of the site's time."""
        if share != self._share:
            self._advance()
            self._share = share
            self._schedule()

    def _tell(self) -> None:
        for site in self._sites:
            site.changed()

    def _advance(self) -> None:
        now = self._loop.time()
        elapsed, self._since = now - self._since, now
        if not self._running:
            return
        self.busy_s += elapsed
        served = elapsed * self._share
        paid = min(served, self._debt_s)
        self._debt_s -= paid
        self._ticks += (served - paid) / self._tick_s(len(self._running))

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._slots:
            units, group = self._waiting.popleft()
            heapq.heappush(self._running, _Job(self._ticks + units, group))

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running:
            ticks = max(0.0, self._running[0].ends - self._ticks)
            seconds = (self._debt_s + ticks * self._tick_s(len(self._running))) / self._share
            self._timer = self._loop.call_later(seconds, self._end_jobs)

    def _end_jobs(self) -> None:
        self._advance()
        due = self._running[0].ends + 1e-6  # what the clock's rounding left of the tick
        while self._running and self._running[0].ends <= due:
            group = heapq.heappop(self._running).group
            group.left -= 1
            if not group.left and not group.done.done():
                group.done.set_result(None)
        self._ticks = max(self._ticks, due - 1e-6)
        self._fill()
        self._schedule()
        if not self.busy:
            self._debt_s = 0.0
            self._tell()
