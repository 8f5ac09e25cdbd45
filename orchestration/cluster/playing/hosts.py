"""Environments of a run in actors on CPU nodes, as the episodes' generator opens them.

Actors are started when they are first needed. One that dies, or does not even answer that an environment is to be
closed, is given up: what was in it is lost, its episodes begin again elsewhere, and another actor takes its place.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from orchestration.cluster.calls import RemoteActor
from orchestration.cluster.playing.actor import EnvironmentActor
from orchestration.cluster.upkeep.restarts import Restarts
from orchestration.environments.environment import Observation, Step
from orchestration.errors import EnvironmentLostError, RemoteTimeoutError, WorkerDiedError, one_line
from orchestration.run.reporter import Note
from orchestration.types import Problem

Result = TypeVar("Result")
Actor = RemoteActor[EnvironmentActor]

_CLOSE_S = 5.0
"""What an actor gets to close an environment; one that blocks it takes longer."""
_MARGIN_S = 5.0
"""What a call takes longer than the episode's own limit, which says more."""


@dataclass(slots=True, eq=False)
class _Host:
    """A place for environments, and who has it now."""

    index: int
    restarts: Restarts
    actor: Actor | None = None
    life: int = 0
    num_open: int = 0


class EnvironmentHosts:
    """Opens environments in the actor with the fewest. Everything runs on one event loop.

    Args:
        start: Makes the actor of a place (its number), for its so-manieth life, from 1; does not wait for it.
        end: Ends an actor's processes; never raises.
        num_hosts: Places.
        start_timeout_s: What an actor may take to start.
        call_timeout_s: What an environment may take for an answer.
        new_restarts: Makes the budget of one place.
        note: Told what happens.
    """

    def __init__(
        self,
        start: Callable[[int, int], Actor],
        end: Callable[[Actor], Awaitable[None]],
        *,
        num_hosts: int,
        start_timeout_s: float,
        call_timeout_s: float,
        new_restarts: Callable[[], Restarts],
        note: Note = lambda level, message: None,
    ) -> None:
        self._start, self._end, self._note = start, end, note
        self.start_timeout_s, self.call_timeout_s = start_timeout_s, call_timeout_s
        self._hosts = [_Host(index, new_restarts()) for index in range(num_hosts)]
        self._numbers = itertools.count()
        self._ending: set[asyncio.Future[None]] = set()

    def open(self) -> RemoteEnvironment:
        """A new environment; its actor makes it when it is reset."""
        host = min(self._hosts, key=lambda host: (host.num_open, host.index))
        host.num_open += 1
        return RemoteEnvironment(self, host, next(self._numbers))

    def actor_of(self, host: _Host) -> Actor:
        """The actor in a place, started if there is none."""
        if host.actor is None:
            host.life += 1
            host.actor = self._start(host.index, host.life)
        return host.actor

    def lose(self, host: _Host, actor: Actor, why: BaseException) -> None:
        """Give an actor up; whoever finds out first sees to it.

        Raises:
            WorkerDiedError: That was once too often.
        """
        if host.actor is not actor:
            return
        host.actor = None
        ending = asyncio.ensure_future(self._end(actor))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        host.restarts.book(one_line(why))
        self._note("warning", f"{one_line(why, 1000)}; its episodes begin again")


@dataclass(slots=True)
class RemoteEnvironment:
    """The `Environment` protocol over one in an actor."""

    _hosts: EnvironmentHosts
    _host: _Host
    _number: int
    _actor: Actor | None = field(default=None)

    async def ready(self) -> None:
        self._actor = self._hosts.actor_of(self._host)
        here = self._actor.call(EnvironmentActor.here, timeout_s=self._hosts.start_timeout_s)
        if self._actor.process is None:
            self._actor.process = await self._heard(here())
            self._actor.where = str(self._actor.process)

    async def reset(self, problem: Problem) -> Observation | None:
        assert self._actor is not None, "ready() comes first"
        call = self._actor.call(EnvironmentActor.reset, timeout_s=self._hosts.call_timeout_s + _MARGIN_S)
        return await self._heard(call(self._number, problem))

    async def step(self, action: str) -> Step:
        assert self._actor is not None, "ready() comes first"
        call = self._actor.call(EnvironmentActor.step, timeout_s=self._hosts.call_timeout_s + _MARGIN_S)
        return await self._heard(call(self._number, action))

    async def close(self) -> None:
        self._host.num_open -= 1
        if self._actor is not None and self._actor is self._host.actor:
            await self._heard(self._actor.call(EnvironmentActor.close, timeout_s=_CLOSE_S)(self._number))

    async def _heard(self, answer: Awaitable[Result]) -> Result:
        """Raises EnvironmentLostError where the actor is lost."""
        assert self._actor is not None
        try:
            return await answer
        except (WorkerDiedError, RemoteTimeoutError) as error:
            self._hosts.lose(self._host, self._actor, error)
            raise EnvironmentLostError(str(error)) from error
