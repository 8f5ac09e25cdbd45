"""Several tasks in one run: each asked, rewarded and judged in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from orchestration.data.problems import Problems
from orchestration.data.task import Judges, PromptLayout, Task, called, find_task, register
from orchestration.environments.tools.tool import Schema
from orchestration.errors import ConfigError
from orchestration.types import Problem
from reward_service.types import RewardSpec


@register
class Mixture(Task):
    """Several tasks by name, with weights: data=mixture data.tasks='{arithmetic: {}, code: {kind: programs}}'.

    A problem's category is its task's name, for reports, `curriculum.weights` and `learner.advantage_by_category`.
    """

    name: ClassVar[str] = "mixture"

    num_shots: int = Field(0, ge=0, le=0, description="Each task has examples of its own: data.tasks.NAME.num_shots.")
    tasks: dict[str, SerializeAsAny[Task]] = Field(
        default_factory=dict,
        description="Task settings by the name that they have in the run; `kind` may be left out where it is the name.",
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="Share of the prompts by task's name, such as {code: 2}; 1 for one that is not named.",
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _are_tasks(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: _as_task(name, settings, beside=info.context) for name, settings in value.items()}

    def check(self) -> None:
        if not self.tasks:
            raise ValueError("data.kind=mixture needs tasks: data.tasks='{arithmetic: {}, code: {kind: programs}}'")
        if self.tools:
            raise ValueError("data.tools: each task of a mixture has tools of its own, data.tasks.NAME.tools")
        if unknown := sorted(self.weights.keys() - self.tasks.keys()):
            raise ValueError(f"data.weights names {unknown[0]!r}; the tasks are: {', '.join(self.tasks)}")
        for name, weight in self.weights.items():
            if weight <= 0:
                raise ValueError(f"data.weights: {name}={weight:g} must be above 0; leave the task out instead")
        for task in self.tasks.values():
            task.check()
        self.rewards()

    def parts(self) -> Mapping[str, Task]:
        return self.tasks

    def category_weights(self) -> Mapping[str, float]:
        return {name: self.weights.get(name, 1.0) for name in self.tasks}

    def load(self) -> Problems:
        found = {name: task.load() for name, task in self.tasks.items()}

        def together(which: str) -> tuple[Problem, ...]:
            return tuple(
                replace(problem, problem_id=f"{name}/{problem.problem_id}", category=name, part=name)
                for name, problems in found.items()
                for problem in getattr(problems, which)
            )

        return Problems(train=together("train"), eval=together("eval"), shots=together("shots"))

    def layout(self) -> PromptLayout:
        raise ConfigError("the tasks of data.kind=mixture are asked each in its own way: take one of them alone")

    def rewards(self) -> tuple[RewardSpec, ...]:
        """Those of all tasks.

        Raises:
            ConfigError: Two tasks have one reward with other weights or parameters.
        """
        found: dict[str, RewardSpec] = {}
        for name, task in self.tasks.items():
            for spec in task.rewards():
                if found.setdefault(spec.name, spec) != spec:
                    raise ConfigError(
                        f"data.tasks: {name} has the reward {spec.name!r} with another weight or other parameters than "
                        f"a task before it; set reward.rewards"
                    )
        return tuple(found.values())

    def has_turns(self) -> bool:
        return any(task.has_turns() for task in self.tasks.values())

    def tool_schemas(self) -> tuple[Schema, ...]:
        return tuple(schema for task in self.tasks.values() for schema in task.tool_schemas())

    def named_modules(self) -> tuple[str, ...]:
        return tuple(module for task in self.tasks.values() for module in task.named_modules())

    def asks(self) -> tuple[RewardSpec, ...]:
        return tuple({spec.name: spec for task in self.tasks.values() for spec in task.asks()}.values())

    def judges(self) -> Judges:
        """Of the first task: which there are is the same for all."""
        return next(iter(self.tasks.values())).judges() if self.tasks else Judges()

    def files(self) -> dict[str, str]:
        return {
            f"tasks.{name}.{field}": file for name, task in self.tasks.items() for field, file in task.files().items()
        }


def _as_task(name: str, settings: Any, *, beside: Path | None) -> Any:
    if not isinstance(settings, dict):
        return settings
    try:
        settings = {**settings, **called(settings.get("kind", name))}
        task = find_task(settings["kind"], beside=beside)
        return task.model_validate({**settings, "kind": task.target()})
    except (ConfigError, ValidationError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else {"msg": str(error), "loc": ()}
        place = ".".join(map(str, ("data.tasks", name, *problem["loc"])))
        raise ValueError(f"{place}: {problem['msg']}") from error
