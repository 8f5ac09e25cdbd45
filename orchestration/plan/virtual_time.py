"""An event loop whose clock jumps to the next timer instead of waiting for it.

What runs on it is the real asynchronous code; an hour of it takes as long as its events take to handle. There is no
input and output, and nothing depends on the machine: the same program gives the same times.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class StalledError(RuntimeError):
    """Everything waits, and no timer is set that could end it."""


class _Jump(selectors.DefaultSelector):
    """Answers at once, with the clock put forward by what it was to wait."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise StalledError("nothing is left that could happen")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is virtual and begins at 0."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def run_virtually(main: Coroutine[Any, Any, Answer]) -> Answer:
    """The coroutine's answer, on a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
