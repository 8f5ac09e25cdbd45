"""What the tasks share whose answers are numbers on an answer line, `#### The final answer is 18`."""

from __future__ import annotations

from orchestration.data.problems import INSTRUCTION
from orchestration.data.task import Judges, PromptLayout, Task
from reward_service.types import RewardSpec


class AnswerLineTask(Task):
    """A task whose problems have the reference `final_answer`, a number in text form."""

    def layout(self) -> PromptLayout:
        return PromptLayout(instruction=INSTRUCTION)

    def rewards(self) -> tuple[RewardSpec, ...]:
        return RewardSpec(name="gsm8k_format"), RewardSpec(name="gsm8k_correctness")

    def judges(self) -> Judges:
        return Judges(strict=RewardSpec(name="gsm8k_correctness"), lenient=RewardSpec(name="last_number"))
