"""What holds environments: an actor's class. Nothing here imports ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from orchestration.cluster.upkeep.whereabouts import Whereabouts, hear_sigterm
from orchestration.environments.asking import begun, stepped
from orchestration.environments.environment import Environment, Observation, Step
from orchestration.errors import EnvironmentLostError
from orchestration.settings.config import RunConfig
from orchestration.types import Problem

Result = TypeVar("Result")


class EnvironmentActor:
    """Any number of environments of a run's task; an async actor, so they overlap. One that blocks holds those beside
    it, and neither the driver nor other actors."""

    def __init__(self, name: str, node_id: Callable[[], str], config: RunConfig) -> None:
        self._name, self._node_id, self._config = name, node_id, config
        self._open: dict[int, Environment] = {}
        self._under_way: dict[int, asyncio.Task[Any]] = {}

    def __repr__(self) -> str:  # Ray puts it in front of log lines
        return self._name

    async def here(self) -> Whereabouts:
        return Whereabouts.here(self._node_id())

    async def reset(self, number: int, problem: Problem) -> Observation | None:
        """Make an environment, by a number that nobody else has, and begin."""
        hear_sigterm()
        environment = self._config.data.part(problem.part).environment()
        assert environment is not None, "a task has one for all its problems or for none"
        self._open[number] = environment
        return await self._in_turn(number, begun(environment, problem))

    async def step(self, number: int, action: str) -> Step:
        """As `Environment.step`."""
        if number not in self._open:
            raise EnvironmentLostError(f"{self._name} has no environment {number} any more")
        return await self._in_turn(number, stepped(self._open[number], action))

    async def close(self, number: int) -> None:
        """Close one, whatever it is doing; harmless where there is none."""
        environment = self._open.pop(number, None)
        if (task := self._under_way.pop(number, None)) is not None:
            task.cancel()
        if environment is not None:
            await environment.close()

    async def shutdown(self) -> None:
        """Close all. Never raises."""
        with contextlib.suppress(Exception):
            await asyncio.gather(*(self.close(number) for number in list(self._open)), return_exceptions=True)

    async def _in_turn(self, number: int, work: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.ensure_future(work)
        self._under_way[number] = task
        try:
            return await task
        except asyncio.CancelledError:
            raise EnvironmentLostError(f"environment {number} of {self._name} was closed meanwhile") from None
        finally:
            if self._under_way.get(number) is task:
                del self._under_way[number]
