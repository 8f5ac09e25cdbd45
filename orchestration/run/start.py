"""How long a run took to start, by phase: from the command to the end of its first step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

TOTAL = "total"


class StartClock:
    """Seconds by phase. Phases may overlap, so that they add up to more than the total.

    Args:
        began: When the command was given, on the clock of `time.perf_counter`, which nobody sets.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._seconds: dict[str, float] = {}

    @classmethod
    def of_this_process(cls) -> StartClock:
        """One that runs since this process was started; what it has done until now is the phase `command`."""
        age_s = time.time() - psutil.Process().create_time()
        clock = cls(time.perf_counter() - age_s)
        clock._seconds["command"] = age_s
        return clock

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def finish(self, first_step_s: float) -> None:
        """The first step is done, and took so long."""
        self._seconds |= {"first_step": first_step_s, TOTAL: time.perf_counter() - self._began}

    @property
    def finished(self) -> bool:
        """Whether the first step is done."""
        return TOTAL in self._seconds

    def seconds(self) -> dict[str, float] | None:
        """By phase, with the total; None before the first step was done."""
        return dict(self._seconds) if self.finished else None

    def line(self) -> str:
        """The same for people."""
        parts = [f"{name} {seconds:.1f}" for name, seconds in self._seconds.items() if name != TOTAL]
        return f"first step done {self._seconds[TOTAL]:.1f} s after the command (seconds: {', '.join(parts)})"
