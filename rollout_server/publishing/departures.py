"""When versions go: as their last requests end, and before another takes their place."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from rollout_server.errors import RolloutError
from rollout_server.publishing.adapters import AdapterTable
from rollout_server.types import AdapterVersion

logger = logging.getLogger(__name__)


class Departures:
    """Drops the versions that no request is on.

    Args:
        table: Who is on what.
        drop: Takes a version out of everything.
        publishing: Held by whoever changes which versions there are.
        worker: Whose versions they are, for the log.
    """

    def __init__(
        self,
        table: AdapterTable,
        drop: Callable[[AdapterVersion], Awaitable[None]],
        *,
        publishing: asyncio.Lock,
        worker: str,
    ) -> None:
        self._table, self._drop, self._publishing, self._worker = table, drop, publishing, worker
        self._request_ended = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()

    def release(self, number: int) -> None:
        """End a request on a version."""
        self._table.release(number)
        self._request_ended.set()
        self.drop_later()

    def drop_later(self) -> None:
        """Drop idle versions without making anybody wait."""
        if not self._table.idle() or any(not task.done() for task in self._under_way):
            return
        task = asyncio.create_task(self._drop_idle_alone())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def place(self, max_versions: int) -> None:
        """Wait until fewer versions are live; for whoever is publishing."""
        while True:
            self._request_ended.clear()
            await self._drop_idle()
            if len(self._table.live) < max_versions:
                return
            await self._request_ended.wait()

    async def quiet(self) -> None:
        """Wait until no request is under way; none may begin meanwhile."""
        while self._table.num_all_requests:
            self._request_ended.clear()
            await self._request_ended.wait()

    async def settled(self) -> None:
        """Wait for what `drop_later` began."""
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _drop_idle_alone(self) -> None:
        async with self._publishing:
            try:
                await self._drop_idle()
            except RolloutError as error:
                logger.warning("worker %s could not drop an adapter version: %s", self._worker, error)

    async def _drop_idle(self) -> None:
        while idle := self._table.idle():
            await self._drop(idle[0])
