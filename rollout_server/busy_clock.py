"""How long a worker was busy, whatever the overlap of its requests."""

from __future__ import annotations

import time


class BusyClock:
    """Seconds in which at least one request was under way."""

    def __init__(self) -> None:
        self._under_way = 0
        self._since = 0.0
        self._total_s = 0.0

    def begin(self) -> None:
        if self._under_way == 0:
            self._since = time.monotonic()
        self._under_way += 1

    def end(self) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self._total_s += time.monotonic() - self._since

    def total_s(self) -> float:
        return self._total_s + (time.monotonic() - self._since if self._under_way else 0.0)
