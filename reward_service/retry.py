"""Trying a remote call again: until a deadline or a number of tries, with pauses that grow."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

_FIRST_S = 0.1
_MAX_S = 10.0

T = TypeVar("T")


class RetryLaterError(Exception):
    """A try failed with `error`, and another may not. `wait_s`: the time the other side asks to wait, if it does."""

    def __init__(self, error: Exception, *, wait_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.wait_s = error, wait_s


class GaveUpError(Exception):
    """No try succeeded. `last`: the last failure; None if the deadline came before there was any."""

    def __init__(self, num_tries: int, last: Exception | None, *, timed_out: bool) -> None:
        super().__init__(f"{num_tries} tries; the last: {last}")
        self.num_tries, self.last, self.timed_out = num_tries, last, timed_out


async def retry(
    attempt: Callable[[], Awaitable[T]],
    *,
    deadline: float,
    max_tries: int | None = None,
    holding: AbstractAsyncContextManager[Any] | None = None,
) -> T:
    """What the first try gives that succeeds.

    Args:
        attempt: one try; it raises RetryLaterError if another may help. Anything else it raises ends the tries.
        deadline: of all tries together, by the event loop's clock; a try under way is cancelled then.
        max_tries: None: as many as the deadline allows.
        holding: entered before the first try and held to the end, such as a place among concurrent calls; waiting for
            it counts towards the deadline.

    Raises:
        GaveUpError: the tries are used up, the deadline is over, or the next pause would reach it.
    """
    now = asyncio.get_running_loop().time
    num_tries = 0
    last: Exception | None = None
    try:
        async with asyncio.timeout_at(deadline), holding or nullcontext():
            while True:
                num_tries += 1
                try:
                    return await attempt()
                except RetryLaterError as later:
                    last = later.error
                    pause_s = max(backoff_s(num_tries), later.wait_s)
                if num_tries == max_tries or now() + pause_s >= deadline:
                    break  # nothing is gained by sleeping into the deadline
                await asyncio.sleep(pause_s)
    except TimeoutError:
        raise GaveUpError(num_tries, last, timed_out=True) from None
    raise GaveUpError(num_tries, last, timed_out=False)


def backoff_s(num_tries: int) -> float:
    """Seconds after `num_tries` failures: exponential with full jitter, at most ten."""
    return random.uniform(0.0, min(_MAX_S, _FIRST_S * 2.0 ** min(num_tries, 30)))


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that an answer's Retry-After asks to wait; 0 if it does not say.

    Args:
        headers: By names in small letters. The wait may be a number or a date: of the clock that `date` tells, which
            need not be ours.
    """
    value = headers.get("retry-after")
    if value is None:
        return 0.0
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        answered = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (parsedate_to_datetime(value) - answered).total_seconds())
    except (ValueError, TypeError):
        return 0.0
