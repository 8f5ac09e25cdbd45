"""What processes got of the processors, and what they waited for them: read from Linux's `/proc`.

`schedstat` counts both to the nanosecond. Where a kernel does not write it, `stat` has the time a process ran, and one
that can run counts as waiting for the rest.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_NUM_CORES: Final = len(os.sched_getaffinity(0))


class Usage(NamedTuple):
    """Since a process began."""

    ran_s: float
    waited_s: float
    """Seconds in which it could have run, and another did."""


class ProcessorClock:
    """The usage of one process, its main thread."""

    def __init__(self, pid: int, *, proc: str = "/proc") -> None:
        self._pid, self._proc = pid, proc
        self._before = Usage(0.0, 0.0)
        self._at: float | None = None

    def read(self, now: float) -> Usage:
        """As of `now` (`time.monotonic`); what was read last, once the process is gone."""
        if (found := read_schedstat(self._pid, proc=self._proc)) is None:
            found = self._estimate(now)
        self._before, self._at = found, now
        return found

    def _estimate(self, now: float) -> Usage:
        stat = _read_stat(self._pid, proc=self._proc)
        if stat is None:
            return self._before
        ran_s = (int(stat[11]) + int(stat[12])) / _TICKS_PER_S
        waited_s = self._before.waited_s
        if stat[0] == "R" and self._at is not None:
            waited_s += max(0.0, now - self._at - (ran_s - self._before.ran_s))
        return Usage(ran_s, waited_s)


def read_schedstat(pid: int, *, proc: str = "/proc") -> Usage | None:
    """The usage of a process's main thread; None where that is not to be had."""
    try:
        with open(f"{proc}/{pid}/schedstat", "rb", buffering=0) as file:
            ran_ns, waited_ns, _ = file.read(100).split()
    except (OSError, ValueError):
        return None
    return Usage(int(ran_ns) / 1e9, int(waited_ns) / 1e9)


def waited_by_descendants(pids: Iterable[int], *, proc: str = "/proc") -> Mapping[int, float]:
    """Of each process, the seconds that its living descendants waited for a processor. Reads all of `/proc`."""
    children = defaultdict[int, list[int]](list)
    for name in os.listdir(proc):
        if name.isdigit() and (stat := _read_stat(int(name), proc=proc)) is not None:
            children[int(stat[1])].append(int(name))
    totals = {}
    for pid in pids:
        found, total_s = list(children[pid]), 0.0
        while found:
            one = found.pop()
            usage = read_schedstat(one, proc=proc)
            total_s += usage.waited_s if usage is not None else 0.0
            found += children[one]
        totals[pid] = total_s
    return totals


def kept_busy_by_others(num_ours: int, *, proc: str = "/proc") -> bool:
    """Whether processes that are not ours could use all processors: `num_ours` of those that can run now are."""
    try:
        with open(f"{proc}/loadavg", encoding="ascii") as file:
            running = int(file.read().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return running - num_ours > _NUM_CORES


def _read_stat(pid: int, *, proc: str) -> list[str] | None:
    """The fields of `stat` from the state on: behind the name, which may hold anything."""
    try:
        with open(f"{proc}/{pid}/stat", "rb", buffering=0) as file:
            return file.read(2000).rpartition(b") ")[2].decode("ascii").split()
    except (OSError, ValueError):
        return None
