"""A Gymnasium environment over text, which registers itself when it is imported."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.spaces import Text


class Repeat(gymnasium.Env[str, str]):
    """Say it again: 1 for that, and over."""

    observation_space = Text(40)
    action_space = Text(40, charset="abcdefghijklmnopqrstuvwxyz ")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self._word = str(self.np_random.choice(["cat", "dog"]))
        return f"Say {self._word}.", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        right = action == self._word
        return "Again.", float(right), right, False, {}


gymnasium.register("Repeat-v0", entry_point=Repeat, disable_env_checker=True)
