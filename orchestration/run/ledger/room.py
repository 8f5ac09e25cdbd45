"""Waiting for room on a full disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from learner.errors import DiskFullError
from orchestration.concurrency import unless_set
from orchestration.errors import NoRoomError, one_line
from orchestration.run.reporter import Note

Result = TypeVar("Result")

POLL_S = 2.0


async def when_there_is_room(
    write: Callable[[], Awaitable[Result]],
    *,
    retry_io_s: float,
    note: Note,
    stop: asyncio.Event | None = None,
    poll_s: float | None = None,
) -> Result:
    """What `write` gives, tried again while there is no room for it.

    Args:
        write: May be called often.
        retry_io_s: For how long.
        note: Told of the wait, once, and of its end.
        stop: Once it is set, nobody waits any more.
        poll_s: Between two tries; None: `POLL_S`.

    Raises:
        NoRoomError, DiskFullError: There was none for so long.
    """
    now, stop = asyncio.get_running_loop().time, stop or asyncio.Event()
    give_up_at, told = now() + retry_io_s, False
    while True:
        try:
            result = await write()
        except (NoRoomError, DiskFullError) as error:
            if stop.is_set() or now() >= give_up_at:
                raise
            if not told:
                note("warning", f"{one_line(error, 1000)}; it is tried again for retry_io_s={retry_io_s:g} s")
            told = True
            await unless_set(stop, asyncio.sleep(POLL_S if poll_s is None else poll_s))
        else:
            if told:
                note("info", "there is room again")
            return result
