"""An environment in OpenEnv's documented form, behind its own server: `python openenv_server.py PORT`."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State
from pydantic import Field


class Said(Action):
    message: str = Field(..., max_length=400)


class Heard(Observation):
    text: str = ""


class Warmer(Environment):  # type: ignore[misc]
    """Pays for each turn, by its length; over after two."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._state = State(step_count=0)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Heard:
        self._state = State(episode_id=episode_id, step_count=0)
        return Heard(text=f"Seed {seed}.", done=False)

    def step(self, action: Said, timeout_s: float | None = None, **kwargs: Any) -> Heard:
        self._state.step_count += 1
        done = self._state.step_count == 2
        return Heard(text=f"Heard {action.message[:8]}.", reward=1 / (1 + len(action.message)), done=done)

    @property
    def state(self) -> State:
        return self._state


if __name__ == "__main__":
    app = create_fastapi_app(Warmer, Said, Heard, max_concurrent_envs=16)
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
