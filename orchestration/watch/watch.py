"""All alarms of a run, told of each step as it ends."""

from __future__ import annotations

from collections import Counter
from typing import Final

from orchestration.watch.facts import Alarm, EvaluationFacts, StepFacts
from orchestration.watch.history import History, summarise
from orchestration.watch.rewards import FormatWithoutSubstance, RewardBroke, RewardNotAccuracy, RulesApart
from orchestration.watch.shapes import OneShape
from orchestration.watch.training import STEPS, Apart, CategoryLeftBehind, Collapse, Length, NothingLearned

FALSE_ALARMS: Final = 0.02
"""Chance that a healthy run of any length sets off one of the statistical alarms, as far as their assumptions hold."""

OF_STEPS: Final = (
    FormatWithoutSubstance,
    OneShape,
    RewardBroke,
    Collapse,
    Length,
    Apart,
    CategoryLeftBehind,
)
OF_EVALUATIONS: Final = (RewardNotAccuracy, RulesApart)

NAMES: Final = tuple(kind.name for kind in (*OF_STEPS, NothingLearned, *OF_EVALUATIONS))


class Watch:
    """Streaming: it keeps two windows of summaries, never the texts of a run.

    watch = Watch()
    for alarm in watch.step(facts):
        print(alarm.line())
    """

    def __init__(self, *, flat_steps: int = STEPS) -> None:
        """`flat_steps`: steps in a row without anything to learn from before that is said."""
        alpha = FALSE_ALARMS / len(NAMES)
        self._history = History()
        self._of_steps = [*(kind(alpha) for kind in OF_STEPS), NothingLearned(alpha, flat_steps)]
        self._of_evaluations = [kind(alpha) for kind in OF_EVALUATIONS]
        self._in_a_row: Counter[str] = Counter()
        self._correctness: str | None = None
        self.raised: Counter[str] = Counter(dict.fromkeys(NAMES, 0))
        """How many alarms were told, by name."""

    def step(self, facts: StepFacts) -> list[Alarm]:
        """What is to be told after this step: an alarm that lasts is told after 1, 2, 4, 8 … steps.

        Args:
            facts: Of the next step; steps come in order.

        Returns:
            Those to be told now; `active` has all that hold.
        """
        if not facts.samples:
            return []
        self._correctness = facts.correctness
        self._history.add(summarise(facts))
        found = [(kind.name, kind.step(facts, self._history)) for kind in self._of_steps]
        return [alarm for name, alarm in found if self._is_told(name, alarm) and alarm is not None]

    def evaluation(self, facts: EvaluationFacts) -> list[Alarm]:
        """The same after held-out answers.

        Args:
            facts: Of held-out answers, after the step that was told last.
        """
        found = [(kind.name, kind.evaluation(facts, self._history, self._correctness)) for kind in self._of_evaluations]
        return [alarm for name, alarm in found if self._is_told(name, alarm) and alarm is not None]

    @property
    def active(self) -> list[str]:
        """Names of the alarms that hold now."""
        return sorted(name for name, steps in self._in_a_row.items() if steps)

    def _is_told(self, name: str, alarm: Alarm | None) -> bool:
        steps = self._in_a_row[name] = self._in_a_row[name] + 1 if alarm else 0
        told = bool(steps) and steps & (steps - 1) == 0
        self.raised[name] += told
        return told
