"""Waiting for what another thread, task or process does: until it is so, not for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

POLL_S = 0.01


def until(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Return as soon as `condition()` is true; fails when it is not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(POLL_S)


async def until_async(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    """The same in a coroutine, while other tasks run."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        await asyncio.sleep(POLL_S)
