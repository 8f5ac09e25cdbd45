"""A Gymnasium environment whose observations and actions can be written: `Text` spaces, or a toy text world.

An observation that is no text is shown as the environment renders it (`render_mode="ansi"`), else as Python writes it.
An action for a `Discrete` space is the last number of a turn; for a `Text` space the turn itself. One that does not fit
is answered with what fits, and no step is made.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from orchestration.environments.environment import Step
from orchestration.errors import ConfigError, one_line
from orchestration.extras import require
from orchestration.types import Problem

_NUMBER = re.compile(r"-?\d+")


class GymnasiumEnvironment:
    """Begun with the reference's `seed`. Pays each step's reward; blocking calls run in a thread."""

    def __init__(self, environment: str, options: Mapping[str, Any]) -> None:
        require("gymnasium", by=f"data.environment_id={environment!r}", extra="gymnasium")
        import gymnasium

        try:
            self._world = gymnasium.make(environment, **options)
        except Exception as error:  # environments of many authors
            raise ConfigError(
                f"data.environment_id={environment!r} with data.options={dict(options)} cannot be made: "
                f"{one_line(error)}"
            ) from error
        self._discrete = isinstance(self._world.action_space, gymnasium.spaces.Discrete)
        if not self._discrete and not isinstance(self._world.action_space, gymnasium.spaces.Text):
            raise ConfigError(
                f"data.environment_id={environment!r} has actions of {self._world.action_space}, which no text says; "
                f"name one with Text or Discrete actions"
            )

    async def reset(self, problem: Problem) -> str:
        observation, _ = await asyncio.to_thread(self._world.reset, seed=int(problem.reference["seed"]))
        return self._shown(observation)

    async def step(self, action: str) -> Step:
        chosen = self._chosen(action)
        if chosen is None or not self._world.action_space.contains(chosen):
            return Step(self._asked())
        observation, reward, terminated, truncated, _ = await asyncio.to_thread(self._world.step, chosen)
        done = bool(terminated or truncated)
        return Step("" if done else self._shown(observation), reward=float(reward), done=done)

    async def close(self) -> None:
        await asyncio.to_thread(self._world.close)

    def _chosen(self, action: str) -> Any:
        if not self._discrete:
            return action.strip()
        numbers = _NUMBER.findall(action)
        return int(numbers[-1]) if numbers else None

    def _asked(self) -> str:
        space = self._world.action_space
        if not self._discrete:
            return f"An action is a text of {space}."
        return f"An action is a number from {space.start} to {space.start + space.n - 1}."

    def _shown(self, observation: Any) -> str:
        if not isinstance(observation, str) and self._world.render_mode == "ansi":
            observation = self._world.render()
        return str(observation).strip()
