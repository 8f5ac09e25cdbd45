"""When requests begin: those that begin together wait for each other, and are then handed over in the order of their
places; all others begin one by one, as places become free."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from rollout_server.types import Completion, Turn

PATIENCE_S = 30.0
"""How long those that are there wait for the rest. Who misses them then begins alone: an engine that waited for one
that went to another engine, as the worker before it died, would never begin."""

_REMEMBERED = 256

Begin = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class _Gathering:
    begins: dict[int, Begin] = field(default_factory=dict)
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    begun: asyncio.Future[None] | None = None


class Turns:
    """The gatherings of one engine.

    Args:
        held: while it is open, the engine takes requests and begins none; told whether they go on from what it has.
    """

    def __init__(
        self, held: Callable[[bool], AbstractAsyncContextManager[None]], patience_s: float = PATIENCE_S
    ) -> None:
        self._held, self._patience_s = held, patience_s
        self._gatherings: dict[str, _Gathering] = {}
        self._over: deque[str] = deque(maxlen=_REMEMBERED)

    async def begin(self, turn: Turn, begin: Begin) -> None:
        """Call `begin`, which hands a request to the engine, when all of its turn are there; returns when they are
        handed over. Raises what `begin` raised for the first of them that failed.

        Args:
            turn: Its key names requests that begin together, `size` says how many, `index` the place among them.
            begin: Of this request; called in the order of the indices.
        """
        if turn.key in self._over:
            await begin()
            return
        gathering = self._gatherings.setdefault(turn.key, _Gathering())
        gathering.begins[turn.index] = begin
        if len(gathering.begins) == turn.size:
            gathering.whole.set()
        try:
            async with asyncio.timeout(self._patience_s):
                await gathering.whole.wait()
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            gathering.begins.pop(turn.index, None)
            raise
        if gathering.begun is None:
            self._over.append(turn.key)
            self._gatherings.pop(turn.key, None)
            gathering.begun = asyncio.ensure_future(self._begin_all(gathering, turn.goes_on))
            gathering.begun.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, if all leave
        await asyncio.shield(gathering.begun)

    async def _begin_all(self, gathering: _Gathering, goes_on: bool) -> None:
        async with self._held(goes_on):
            for _, begin in sorted(gathering.begins.items()):
                await begin()


async def whole_group(draws: Iterable[Coroutine[Any, Any, Completion]]) -> list[Completion]:
    """All completions of a group, in order. Raises what the first that fails raises; the others are ended then."""
    tasks = [asyncio.ensure_future(draw) for draw in draws]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
