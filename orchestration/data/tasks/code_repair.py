"""Small programs with a second try: what the tests say of the first is shown."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from orchestration.data.task import Judges, register
from orchestration.data.tasks.coding import ALL_TESTS, functions_of_one_line, functions_of_two_operations
from orchestration.data.tasks.programs import Programs
from orchestration.environments.repairing import TESTS, Repairing
from orchestration.types import Problem
from reward_service.types import RewardSpec

_FIRST_TRY = RewardSpec(name="environment", weight=0.0, params={"credit": "first"})


@register
class CodeRepair(Programs):
    """`programs`, where a function that fails may be written again: learned from is the last try, the share of right
    first ones stands beside it."""

    name: ClassVar[str] = "code-repair"

    max_tries: int = Field(2, ge=1, le=8, description="Tries, each a turn.")

    operations: Literal[1, 2] | None = Field(
        None, description="Functions of so many operations on a number, each a line, in place of programs."
    )

    def make(self, count: int) -> list[Problem]:
        if self.operations is None:
            return super().make(count)
        return (functions_of_one_line if self.operations == 1 else functions_of_two_operations)(self.seed)

    def environment(self) -> Repairing:
        return Repairing(max_tries=self.max_tries)

    def asks(self) -> tuple[RewardSpec, ...]:
        return (TESTS,)

    def rewards(self) -> tuple[RewardSpec, ...]:
        return (*super().rewards(), _FIRST_TRY)

    def judges(self) -> Judges:
        return Judges(strict=ALL_TESTS, first_try=_FIRST_TRY)
