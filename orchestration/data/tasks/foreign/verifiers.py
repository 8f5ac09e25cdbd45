"""Prime Intellect's environments: a package of `verifiers` by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from orchestration.data.task import PromptLayout, register
from orchestration.data.tasks.foreign.seeded import SeededTask
from orchestration.environments.foreign.verifiers import VerifiersEnvironment, opening, text_of
from orchestration.environments.foreign.verifiers_process import Held, HostProcess, host_process
from orchestration.environments.tools.tool import Schema
from orchestration.errors import ConfigError
from orchestration.types import Message, Problem


@register
class VerifiersTask(SeededTask):
    """An environment of verifiers, unchanged: its tasks, tools and rewards: data=verifiers:my-env."""

    name: ClassVar[str] = "verifiers"
    named_by: ClassVar[str] = "environment_id"

    environment_id: str = Field("", description="The taskset's id: an installed package, or a module in this folder.")
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Its own settings, as verifiers' `env`: {taskset: {…}, agent: {harness: {id: bash}}}.",
    )
    python: str | None = Field(
        None, description="The Python that has verifiers and the environment; unset: both are installed into the cache."
    )
    packages: tuple[str, ...] = Field((), description="What to install there beside verifiers, as pip takes it.")

    def make(self, count: int) -> list[Problem]:
        return [self._task(number, task) for number, task in enumerate(self._host().tasks(count))]

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=self._host().tasks(1)[0]["system_prompt"] or "")

    def environment(self) -> VerifiersEnvironment:
        return VerifiersEnvironment(self._host(), self.layout().instruction)

    def named_modules(self) -> tuple[str, ...]:
        """The taskset's, by the rule of verifiers: of `owner/my-env@1.0` it is `my_env`."""
        name = self.environment_id.rpartition("/")[2].partition("@")[0]
        return (name.replace("-", "_").lower(),) if name else ()

    def tool_schemas(self) -> tuple[Schema, ...]:
        return tuple(self._host().tools)

    def _host(self) -> HostProcess:
        if not self.environment_id:
            raise ConfigError("data=verifiers needs the environment's name: data=verifiers:my-env")
        return host_process(
            Held(
                environment=self.environment_id,
                config=json.dumps(self.config, sort_keys=True),
                python=self.python,
                packages=self.packages,
            )
        )

    def _task(self, number: int, task: Mapping[str, Any]) -> Problem:
        return Problem(problem_id=f"verifiers/{number}", question=self._question(task), reference={"task": number})

    def _question(self, task: Mapping[str, Any]) -> str | tuple[Message, ...]:
        prompt, system = task["prompt"], task["system_prompt"] or ""
        turns = [] if prompt is None or isinstance(prompt, str) else prompt
        if not turns and system == self.layout().instruction:
            return prompt or ""
        told = [{"role": one["role"], "content": text_of(one.get("content"))} for one in turns]
        return opening(system, told or prompt or "")
