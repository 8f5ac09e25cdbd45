"""Gymnasium's environments, as far as they can be written down."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from orchestration.data.task import register
from orchestration.data.tasks.foreign.seeded import SeededTask
from orchestration.environments.foreign.gymnasium import GymnasiumEnvironment


@register
class GymnasiumTask(SeededTask):
    """An environment by its id, `module:Id` where a module has to be imported first: data=gymnasium:FrozenLake-v1."""

    name: ClassVar[str] = "gymnasium"
    named_by: ClassVar[str] = "environment_id"

    environment_id: str = Field("FrozenLake-v1", description="Its id, such as FrozenLake-v1 or mymodule:MyGame-v0.")
    options: dict[str, Any] = Field(
        default_factory=dict, description="What it is made with, such as {render_mode: ansi, is_slippery: false}."
    )

    def environment(self) -> GymnasiumEnvironment:
        return GymnasiumEnvironment(self.environment_id, self.options)

    def named_modules(self) -> tuple[str, ...]:
        module, colon, _ = self.environment_id.partition(":")
        return (module,) if colon else ()
