"""A reward service that may die, hang or go, as a client that does not: nothing is lost, and nothing is scored as 0.

A service that the run has started is stateless: where it dies or hangs another is started at once, and what was asked
of it is asked again. One that somebody else runs is waited for, until `reward.give_up_after_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from orchestration.cluster.upkeep.restarts import Restarts
from orchestration.concurrency import before
from orchestration.errors import RlvrError, WorkerDiedError, one_line
from orchestration.run.reporter import Note
from orchestration.settings.rewards import RewardConfig
from reward_service.clients.asynchronous import RewardClient
from reward_service.clients.errors import BadAnswerError, RewardServiceUnavailable
from reward_service.types import ItemResult, RewardItem, RewardSpec

LOOK_S = 5.0
"""Between two questions whether the service is ready."""


class Service(Protocol):
    """A service that answers."""

    @property
    def client(self) -> RewardClient: ...

    async def ended(self) -> str:
        """Returns when it has ended, with a sentence that says so; never for one that somebody else runs."""
        ...

    async def end(self, *, in_order: bool) -> None:
        """End it if the run has started it: in order, or at once and whatever state it is in. Never raises."""
        ...


class RewardKeeper:
    """Scores as `RewardClient` does, for as long as there is hope of a service."""

    def __init__(
        self,
        start: Callable[[int], Awaitable[Service]],
        config: RewardConfig,
        *,
        restarts: Restarts,
        note: Note = lambda level, message: None,
        look_s: float = LOOK_S,
    ) -> None:
        self._start, self._config = start, config
        self._restarts, self._note, self._look_s = restarts, note, look_s
        self._service: Service | None = None
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._there = asyncio.Event()
        self._failure: RlvrError | None = None
        self._upkeep: asyncio.Task[None] | None = None
        self._silent = False

    async def start(self) -> None:
        """Returns when the service is ready; a first start that fails is not tried again."""
        self._service = await self._start(1)
        self._there.set()
        if self._config.url is None:
            self._upkeep = asyncio.create_task(self._keep_up(), name="reward-keeper")
            self._upkeep.add_done_callback(self._ended)

    async def close(self) -> None:
        """End the service in order."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.gather(self._upkeep, return_exceptions=True)
        if self._service is not None:
            await self._service.end(in_order=True)

    @property
    def client(self) -> RewardClient:
        """Of the service that is there now."""
        assert self._service is not None, "start() comes first"
        return self._service.client

    def url(self) -> str | None:
        """Of the service that is there now, if one is."""
        return self._service.client.address if self._service is not None and self._there.is_set() else None

    async def score(
        self,
        items: Sequence[RewardItem],
        rewards: Sequence[RewardSpec],
        run_id: str | None = None,
        policy_version: int | None = None,
    ) -> list[ItemResult]:
        """As `RewardClient.score`, but that it goes on for `give_up_after_s`.

        Raises:
            RewardServiceError: The service refuses the request, or has been silent for so long.
            RlvrError: The run's own service cannot be kept alive.
        """
        now = asyncio.get_running_loop().time
        give_up_at = now() + self._config.give_up_after_s
        while True:
            await self._there.wait()
            if self._failure is not None:
                raise self._failure
            try:
                scores = await before(self._gone, self.client.score(items, rewards, run_id, policy_version))
            except (RewardServiceUnavailable, BadAnswerError) as error:
                if now() >= give_up_at:
                    raise
                self._say_silent(error)
                continue
            if scores is not None:
                self._say_heard()
                return scores[0]

    def _say_silent(self, error: Exception) -> None:
        if not self._silent:
            self._silent = True
            self._note(
                "warning",
                f"{error}; groups wait for their scores, for reward.give_up_after_s="
                f"{self._config.give_up_after_s:g} s each, and generation goes on as far as max_staleness allows",
            )

    def _say_heard(self) -> None:
        if self._silent:
            self._silent = False
            self._note("info", "the reward service answers again")

    async def _keep_up(self) -> None:
        """Start another service whenever the one that is there has ended or hangs."""
        life = 1
        while True:
            assert self._service is not None
            why = await self._until_lost(self._service)
            self._there.clear()
            self._gone.set_result(None)
            self._gone = asyncio.get_running_loop().create_future()
            while True:
                try:
                    self._restarts.book(why)
                except WorkerDiedError as error:
                    self._failure = error
                    self._there.set()
                    return
                self._note("warning", f"{one_line(why, 1000)}; another is started, and asked again what it was asked")
                await self._service.end(in_order=False)
                life += 1
                try:
                    self._service = await self._start(life)
                except Exception as error:
                    why = f"the reward service did not start again: {error}"
                else:
                    break
            self._there.set()
            self._note("info", "the reward service is back")

    def _ended(self, upkeep: asyncio.Task[None]) -> None:
        """A service that nobody keeps any more would be waited for for ever: what ends its keeping ends the run."""
        if not upkeep.cancelled() and (error := upkeep.exception()) is not None:
            self._failure = RlvrError(f"the run's reward service is kept alive no longer: {error!r}")
            self._there.set()

    async def _until_lost(self, service: Service) -> str:
        """Returns what was lost when the service has ended, or is not ready for `stall_timeout_s`."""
        ended = asyncio.ensure_future(service.ended())
        try:
            while True:
                try:
                    await before(ended, service.client.health(self._config.stall_timeout_s))
                except RewardServiceUnavailable as error:
                    return f"it hangs: {error}"
                await asyncio.wait([ended], timeout=self._look_s)
                if ended.done():
                    return ended.result()
        except Exception as error:  # such as of its log, which cannot be read any more
            return f"the reward service cannot be watched any more: {error}"
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)


@asynccontextmanager
async def kept(keeper: RewardKeeper) -> AsyncIterator[RewardKeeper]:
    """A keeper whose service is there for as long as the block lasts."""
    try:
        await keeper.start()
        yield keeper
    finally:
        await keeper.close()
