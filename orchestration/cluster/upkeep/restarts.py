"""How often a part of a run is started again before the run gives up, and what it says then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestration.errors import WorkerDiedError, one_line


@dataclass(slots=True)
class Restarts:
    """The restarts of one part, such as a rollout worker: at most `limit` within any `window_s` seconds.

    >>> restarts = Restarts(limit=1, window_s=60)
    >>> restarts.book("rollout-0 died")
    >>> restarts.book("rollout-0 died again")
    Traceback (most recent call last):
    orchestration.errors.WorkerDiedError: ...
    """

    limit: int
    window_s: float
    clock: Callable[[], float] = time.monotonic
    _failures: deque[tuple[float, str]] = field(default_factory=deque)

    def book(self, why: str) -> None:
        """Count a restart.

        Args:
            why: What made it necessary, as a sentence without its full stop.

        Raises:
            WorkerDiedError: It is one too many; the message tells of all within the window, the first first.
        """
        now = self.clock()
        self._failures.append((now, why))
        while self._failures[0][0] < now - self.window_s:
            self._failures.popleft()
        if len(self._failures) > self.limit:
            number = len(self._failures)
            raise WorkerDiedError(
                f"{number} {'failure' if number == 1 else 'failures'} within {self.window_s:g} s "
                f"{'is' if number == 1 else 'are'} more than max_restarts={self.limit} allows: "
                f"{'; '.join(self._told(now))}"
            )

    def _told(self, now: float) -> list[str]:
        """Each with its age; what is said a second time is not told again."""
        told: dict[str, int] = {}
        lines = []
        for number, (at, why) in enumerate(self._failures, start=1):
            first = told.setdefault(why, number)
            said = one_line(why, 1200) if first == number else f"as in ({first})"
            lines.append(f"({number}) {now - at:.0f} s ago: {said}")
        return lines
