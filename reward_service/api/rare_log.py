"""A log that a busy trainer cannot fill."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

INTERVAL_S = 60.0
"""Between two lines of the same profile and reason."""


class RareLog:
    """Says at once why items have no score, then, for each profile and reason, once an interval how many it were."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def tell(self, profile: str, reason: str, message: str) -> None:
        """One item without a score."""
        key = (profile, reason)
        now = self._clock()
        last, silent = self._said.get(key, (float("-inf"), 0))
        if now - last < INTERVAL_S:
            self._said[key] = (last, silent + 1)
            return
        self._said[key] = (now, 0)
        more = f", and {silent} more since the last line of this kind" if silent else ""
        logger.warning("%s: no score: %s%s", profile, message, more)
