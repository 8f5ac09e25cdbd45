"""OpenEnv's environments, by the address of a server or the name of an image."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from orchestration.data.problems import Problems
from orchestration.data.task import register
from orchestration.data.tasks.foreign.seeded import SeededTask
from orchestration.environments.foreign.openenv import OpenEnvironment, check_server


@register
class OpenEnv(SeededTask):
    """A server of OpenEnv's: data=openenv:http://HOST:8000, or data=openenv:image:NAME, started where it is played."""

    name: ClassVar[str] = "openenv"
    named_by: ClassVar[str] = "url"

    url: str = Field(
        "http://127.0.0.1:8000", description="Where the environment's server is; image:NAME: in a container."
    )
    action_field: str = Field("message", description="The action's field that is a turn's text.")
    observation_field: str | None = Field(None, description="The observation's field that is shown; unset: all of it.")

    def load(self) -> Problems:
        problems = super().load()
        check_server(self.url, self.action_field, self.observation_field)
        return problems

    def environment(self) -> OpenEnvironment:
        return OpenEnvironment(self.url, self.action_field, self.observation_field)
