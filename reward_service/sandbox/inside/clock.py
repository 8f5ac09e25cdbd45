"""How long a test has had: on a busy machine that is not how long ago it began."""

from __future__ import annotations

import os
from contextlib import suppress

WATCH_S = 0.05
"""Seconds between two looks at a test."""


class Clock:
    """How much of its time a test has used, as far as the machine let it run."""

    def __init__(self, pids: list[int], wall_s: float) -> None:
        self._pids = pids
        self._wall_s = wall_s
        self._ran_s = -1.0

    def left_s(self, wall_s: float) -> float:
        """Seconds left after `wall_s` seconds; 0 or less if the time is over.

        Time in which the longest-waiting thread of each process waited for a processor does not count, unless the
        test's own processes had it.
        """
        # First what ran: whoever loses the processor between the two looks would see, the other way round, a test that
        # has just run, and not the wait before it.
        ran_s = _ran_s(_others() if os.getpid() == 1 else self._pids)
        waited_s, ready = 0.0, False
        for pid in self._pids:
            longest_s, is_ready = _waited(pid)
            waited_s, ready = waited_s + longest_s, ready or is_ready
        left_s = self._wall_s - charged_s(wall_s, waited_s, ran_s)
        # a wait is written down when it is over; until then, one that is ready and does not run is waiting
        waiting, self._ran_s = ready and ran_s == self._ran_s, ran_s
        return WATCH_S if left_s <= 0 and waiting else left_s


def charged_s(wall_s: float, waited_s: float, ran_s: float) -> float:
    """Seconds of `wall_s` that count for a test that waited `waited_s` for a processor and used `ran_s` of some."""
    return max(wall_s - waited_s, min(ran_s, wall_s))


def _waited(pid: int) -> tuple[float, bool]:
    """Seconds that the thread of a process that waited longest for a processor did, and whether one is ready to run."""
    waited, ready = 0, False
    with suppress(OSError, ValueError):  # no /proc, or it has ended
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat", "rb") as file:
                waited = max(waited, int(file.read().split()[1]))
            ready = ready or _stat(f"{pid}/task/{task}")[0] == b"R"
    return waited / 1e9, ready


def _others() -> list[int]:
    """All processes but this one; for process 1 of a sandbox those are what the test has started."""
    if not os.path.isdir("/proc/self"):
        return []
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]


def _ran_s(pids: list[int]) -> float:
    """Seconds of processor time of processes, with those of their children that have ended."""
    ticks = 0
    for pid in pids:
        with suppress(OSError, ValueError):
            ticks += sum(map(int, _stat(str(pid))[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _stat(path: str) -> list[bytes]:
    """The fields of a process or thread behind its name, the first of them its state."""
    with open(f"/proc/{path}/stat", "rb") as file:
        return file.read().rpartition(b") ")[2].split()
