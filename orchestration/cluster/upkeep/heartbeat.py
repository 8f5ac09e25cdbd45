"""Watching what may hang: by its progress, not by the time that it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

BEAT_S = 1.0
"""Between two looks."""


async def until_stalled(
    beat: Callable[[], Awaitable[int]], is_busy: Callable[[], bool], *, stall_timeout_s: float, beat_s: float = BEAT_S
) -> str:
    """Returns when something does not answer, or makes no step although it is busy, for `stall_timeout_s`.

    Time counts only as far as this process was awake to see it.

    Args:
        beat: Asks it for a number that grows with each of its steps.
        is_busy: Whether it should make any.

    Returns:
        What it did not do, as a predicate.

    Raises:
        Exception: Whatever `beat` raises.
    """
    beats, quiet_s, since = -1, 0.0, time.monotonic()
    answer = asyncio.ensure_future(beat())
    try:
        while True:
            await asyncio.wait({answer}, timeout=beat_s)
            now = time.monotonic()
            quiet_s, since = quiet_s + min(now - since, 2 * beat_s), now
            answered = answer.done()
            if answered:
                news = answer.result()
                if news != beats or not is_busy():
                    beats, quiet_s = news, 0.0
            if quiet_s > stall_timeout_s:
                what = "made no step with work under way" if answered else "did not answer"
                return f"{what} for {stall_timeout_s:g} s"
            if answered:
                await asyncio.sleep(beat_s)
                answer = asyncio.ensure_future(beat())
    finally:
        answer.cancel()
