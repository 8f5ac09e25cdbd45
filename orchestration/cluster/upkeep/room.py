"""Waiting for room on a full disk."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from learner.errors import DiskFullError
from orchestration.errors import NoRoomError, one_line
from orchestration.run.reporter import Note

Result = TypeVar("Result")

POLL_S = 2.0


async def when_there_is_room(
    write: Callable[[], Awaitable[Result]], *, retry_io_s: float, note: Note, poll_s: float = POLL_S
) -> Result:
    """What `write` gives, tried again while there is no room for it.

    Raises:
        NoRoomError, DiskFullError: There was none for `retry_io_s`.
    """
    now = asyncio.get_running_loop().time
    give_up_at, told = now() + retry_io_s, False
    while True:
        try:
            result = await write()
        except (NoRoomError, DiskFullError) as error:
            if now() >= give_up_at:
                raise
            if not told:
                note("warning", f"{one_line(error, 1000)}; it is tried again for retry_io_s={retry_io_s:g} s")
            told = True
            await asyncio.sleep(poll_s)
        else:
            if told:
                note("info", "there is room again")
            return result
