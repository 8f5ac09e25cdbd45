"""A class for TRL's `environment_factory`: its public methods are the tools, `get_reward` pays at the end.

As `GRPOTrainer` has it: `reset` is given the columns of the row, and a text that it returns is shown with the question;
every other public method is a tool; `get_reward`, where there is one, is asked once, when the episode is over.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from orchestration.environments.environment import Step, Surroundings
from orchestration.environments.tools.use import ToolUse
from orchestration.errors import ConfigError
from orchestration.types import Problem


def check_class(name: str, instance: Any, columns: Collection[str]) -> None:
    """Raises ConfigError where a class cannot be called as GRPOTrainer calls it, with a row's columns."""
    for method, arguments in (("reset", dict.fromkeys(columns)), ("get_reward", {})):
        called = getattr(instance, method, None)
        if called is None and method == "get_reward":
            continue
        try:
            if not callable(called):
                raise TypeError("there is no such method")
            inspect.signature(called).bind(**arguments)
        except TypeError as error:
            given = f"the columns {', '.join(columns)}" if arguments else "nothing"
            raise ConfigError(f"data.factory={name!r}: {method} is called with {given}: {error}") from error


class TrlEnvironment:
    """One instance, for one episode. `reference` of a problem holds the row's columns."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self._instance = factory()
        self._tools = ToolUse(tool_methods(self._instance))
        self._max_turns: int | None = None
        self._num_turns = 0

    def enter(self, surroundings: Surroundings) -> None:
        self._tools.enter(surroundings)
        self._max_turns = surroundings.max_turns

    async def reset(self, problem: Problem) -> str | None:
        shown = await _called(self._instance.reset, problem.reference)
        return None if shown is None else str(shown)

    async def step(self, action: str) -> Step:
        self._num_turns += 1
        said = await self._tools.answers(action)
        if said and self._num_turns != self._max_turns:
            return Step(said)
        return Step(reward=await self._reward(), done=not said)

    async def close(self) -> None:
        """TRL's environments have none."""

    async def _reward(self) -> float | None:
        asked = getattr(self._instance, "get_reward", None)
        return None if asked is None else float(await _called(asked, {}))


def tool_methods(instance: Any) -> list[Callable[..., Any]]:
    """Looked for on the class, so that no property is evaluated."""
    names = [name for name, _ in inspect.getmembers(type(instance), inspect.isfunction)]
    return [
        getattr(instance, name) for name in names if not name.startswith("_") and name not in ("reset", "get_reward")
    ]


async def _called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    if inspect.iscoroutinefunction(function):
        return await function(**arguments)
    return await asyncio.to_thread(function, **arguments)
