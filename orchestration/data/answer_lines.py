"""What the tasks share whose answers are numbers on an answer line, `#### The final answer is 18`."""

from __future__ import annotations

from typing import Any

from orchestration.data.problems import instruction
from orchestration.data.task import Judges, PromptLayout, Task
from reward_service.types import ANSWER_PREFIX, RewardSpec


class AnswerLineTask(Task):
    """A task whose problems have the reference `final_answer`, a number in text form."""

    def line_prefix(self) -> str:
        """How an answer line begins."""
        return ANSWER_PREFIX

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=instruction(self.line_prefix()))

    def rewards(self) -> tuple[RewardSpec, ...]:
        return self._asked("gsm8k_format"), self._asked("gsm8k_correctness")

    def judges(self) -> Judges:
        return Judges(strict=self._asked("gsm8k_correctness"), lenient=RewardSpec(name="last_number"))

    def _asked(self, reward: str) -> RewardSpec:
        prefix = self.line_prefix()
        params: dict[str, Any] = {} if prefix == ANSWER_PREFIX else {"prefix": prefix}
        return RewardSpec(name=reward, params=params)
