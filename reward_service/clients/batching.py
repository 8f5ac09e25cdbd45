"""Small calls that come at about the same time, sent as one request."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from reward_service.clients.errors import RequestRefusedError
from reward_service.clients.wire import ScoreCall, merged
from reward_service.types import ItemResult

_STATUSES_OF_ONE_ITEM = frozenset({413, 422})
"""Refusals that one item may have brought upon the others, or their number."""

Send = Callable[[ScoreCall], Awaitable[list[ItemResult]]]


@dataclass(kw_only=True, slots=True)
class _Batch:
    timer: asyncio.TimerHandle
    num_items: int = 0
    calls: list[tuple[ScoreCall, asyncio.Future[list[ItemResult]]]] = field(default_factory=list)


class Batcher:
    """Puts calls of the same head together for `window_s`, or until there are `max_items`, and sends them.

    It waits for the clock and for `send`, nothing else. Results and errors go to every caller of a request; but when
    a request is refused for what is in it, or for its size, its calls are sent again one by one, as most of them have
    done no wrong. A caller that gives up takes nothing from the others.
    """

    def __init__(self, send: Send, *, window_s: float, max_items: int) -> None:
        self._send, self._window_s, self._max_items = send, window_s, max_items
        self._open: dict[bytes, _Batch] = {}
        self._sending: set[asyncio.Task[None]] = set()

    async def score(self, call: ScoreCall) -> list[ItemResult]:
        """Scores a call's items in a request together with others of the same head that come within the window. A call
        that fills a request alone is sent at once.

        Returns:
            The results of this call's items, in their order.

        Raises:
            Whatever `send` raises for the request, or for this call alone where the request was refused.
        """
        if len(call.items) >= self._max_items:
            return await self._send(call)
        loop = asyncio.get_running_loop()
        batch = self._open.get(call.head)
        if batch is not None and batch.num_items + len(call.items) > self._max_items:
            self._close(call.head)
            batch = None
        if batch is None:
            batch = _Batch(timer=loop.call_later(self._window_s, self._close, call.head))
            self._open[call.head] = batch
        answer: asyncio.Future[list[ItemResult]] = loop.create_future()
        batch.calls.append((call, answer))
        batch.num_items += len(call.items)
        if batch.num_items >= self._max_items:
            self._close(call.head)
        return await answer

    async def drain(self) -> None:
        """Sends what is waiting; returns when all of it is answered."""
        for head in list(self._open):
            self._close(head)
        await asyncio.gather(*self._sending, return_exceptions=True)  # of which their callers know

    def _close(self, head: bytes) -> None:
        batch = self._open.pop(head)
        batch.timer.cancel()
        task = asyncio.get_running_loop().create_task(self._answer(batch.calls))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

        def end_if_nobody_waits(_: object) -> None:
            if all(answer.done() for _, answer in batch.calls):
                task.cancel()

        for _, answer in batch.calls:
            answer.add_done_callback(end_if_nobody_waits)

    async def _answer(self, calls: Sequence[tuple[ScoreCall, asyncio.Future[list[ItemResult]]]]) -> None:
        calls = [(call, answer) for call, answer in calls if not answer.done()]  # one that is done was given up
        if not calls:
            return
        try:
            results = iter(await self._send(merged(call for call, _ in calls)))
        except BaseException as error:
            if isinstance(error, RequestRefusedError) and error.status in _STATUSES_OF_ONE_ITEM and len(calls) > 1:
                await asyncio.gather(*(self._answer([one]) for one in calls))
                return
            for _, answer in calls:
                if isinstance(error, asyncio.CancelledError):
                    answer.cancel()
                elif not answer.done():
                    answer.set_exception(copy.copy(error))  # each raises its own, with its own traceback
            if not isinstance(error, Exception):
                raise
            return
        for call, answer in calls:
            own = [next(results) for _ in call.items]
            if not answer.done():
                answer.set_result(own)
