"""Waiting for what another thread, task or process does: until it is so, not for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

POLL_S = 0.01
"""Between two looks in this process; looks that start a process or ask a service are taken less often."""


def came_true(condition: Callable[[], Any], timeout_s: float = 30.0, *, poll_s: float = POLL_S) -> bool:
    """Whether `condition()` was true within `timeout_s`; returns as soon as it is."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


def until(
    condition: Callable[[], Any],
    timeout_s: float = 30.0,
    *,
    poll_s: float = POLL_S,
    told: Callable[[], object] = lambda: "",
) -> None:
    """Returns as soon as `condition()` is true; fails, with what `told()` says, when it is not within `timeout_s`."""
    assert came_true(condition, timeout_s, poll_s=poll_s), f"not within {timeout_s:g} s {told()}"


async def until_async(condition: Callable[[], Any], timeout_s: float = 30.0, *, poll_s: float = POLL_S) -> None:
    """The same while other tasks run; `condition` may be a coroutine function."""
    async with asyncio.timeout(timeout_s):
        while True:
            met = condition()
            if await met if inspect.isawaitable(met) else met:
                return
            await asyncio.sleep(poll_s)


async def others_run(turns: int = 1) -> None:
    """Until every other task has done what it can without waiting for anybody, so many times."""
    for _ in range(turns):
        await asyncio.sleep(0)
