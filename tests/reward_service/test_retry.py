"""The one loop of tries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from reward_service.retry import GaveUpError, RetryLaterError, retry, retry_after_s


def failing(times: int, *, wait_s: float = 0.0) -> Callable[[], Any]:
    """A call that fails so often and then gives the number of its try."""
    tries = iter(range(1, 100))

    async def attempt() -> int:
        if (number := next(tries)) <= times:
            raise RetryLaterError(ConnectionError(f"failure {number}"), wait_s=wait_s)
        return number

    return attempt


def in_s(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_it_tries_until_a_try_succeeds() -> None:
    assert await retry(failing(2), deadline=in_s(30)) == 3


async def test_tries_are_counted() -> None:
    with pytest.raises(GaveUpError, match="2 tries; the last: failure 2") as caught:
        await retry(failing(2), deadline=in_s(30), max_tries=2)
    assert (caught.value.num_tries, str(caught.value.last), caught.value.timed_out) == (2, "failure 2", False)


async def test_a_pause_that_would_reach_the_deadline_is_not_made() -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(GaveUpError) as caught:
        await retry(failing(5, wait_s=60), deadline=in_s(30))
    assert (caught.value.num_tries, caught.value.timed_out) == (1, False)
    assert asyncio.get_running_loop().time() - began < 10


async def test_a_try_under_way_ends_with_the_deadline_and_so_does_waiting_for_a_place() -> None:
    with pytest.raises(GaveUpError) as caught:
        await retry(asyncio.Event().wait, deadline=in_s(0.01))
    assert (caught.value.num_tries, caught.value.last, caught.value.timed_out) == (1, None, True)
    with pytest.raises(GaveUpError) as caught:
        await retry(failing(0), deadline=in_s(0.01), holding=asyncio.Semaphore(0))
    assert (caught.value.num_tries, caught.value.timed_out) == (0, True)


async def test_other_errors_end_the_tries() -> None:
    async def attempt() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await retry(attempt, deadline=in_s(30))


def test_without_retry_after_there_is_no_wait() -> None:
    assert retry_after_s({}) == 0.0
