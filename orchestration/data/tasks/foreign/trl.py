"""Classes for TRL's `environment_factory`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from orchestration.data.problems import Problems
from orchestration.data.rows import Row, read_rows
from orchestration.data.task import DataFile, PromptLayout, register
from orchestration.data.tasks.foreign.seeded import SeededTask
from orchestration.environments.foreign.trl import TrlEnvironment, check_class, tool_methods
from orchestration.environments.tools.load import imported
from orchestration.environments.tools.tool import Schema, schema_of
from orchestration.errors import DataError
from orchestration.storage.s3 import local_file
from orchestration.types import Problem


@register
class TrlTask(SeededTask):
    """A class as GRPOTrainer(environment_factory=…) takes it, with or without rows: data=trl:mymodule:MyEnvironment."""

    name: ClassVar[str] = "trl"
    named_by: ClassVar[str] = "factory"

    factory: str = Field("", description="module:Class, without arguments; its public methods are tools.")
    train_file: DataFile | None = Field(
        None, description="Rows with a `prompt`; `reset` is given all columns. Unset: the environment makes its own."
    )

    def load(self) -> Problems:
        problems = super().load()
        check_class(self.factory, self._factory()(), problems.train[0].reference)
        return problems

    def make(self, count: int) -> list[Problem]:
        if self.train_file is None:
            return [self._beginning(seed) for seed in range(count)]
        rows = read_rows(Path(local_file(self.train_file, "data.train_file")), "data.train_file")
        return [self._row(number, row) for number, row in enumerate(rows)]

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=self.instruction)

    def environment(self) -> TrlEnvironment:
        return TrlEnvironment(self._factory())

    def named_modules(self) -> tuple[str, ...]:
        return (self.factory.partition(":")[0],) if self.factory else ()

    def tool_schemas(self) -> tuple[Schema, ...]:
        return tuple(schema_of(getattr(tool, "__func__", tool)) for tool in tool_methods(self._factory()()))

    def _factory(self) -> Any:
        return imported(self.factory, setting="data.factory")

    def _beginning(self, seed: int) -> Problem:
        return Problem(problem_id=f"trl/{seed}", question=f"Game {seed}.", reference={})

    def _row(self, number: int, row: Row) -> Problem:
        if not row.get("prompt"):
            raise DataError(f"data.train_file={self.train_file!r}: row {number} has no prompt")
        return Problem(problem_id=f"trl/{number}", question=row["prompt"], reference=dict(row))
