"""What a step shows that a person should know: the watch's alarms, the learner's warnings, and an example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from learner.types import UpdateMetrics
from orchestration.errors import AlarmError, RlvrError
from orchestration.run.evaluation import Evaluation
from orchestration.run.flow import Batch
from orchestration.run.ledger.tables import completion_id
from orchestration.run.metrics import Number
from orchestration.run.reporter import Reporter
from orchestration.settings.config import RunConfig
from orchestration.watch.facts import Alarm, EvaluationFacts, Sample, StepFacts
from orchestration.watch.watch import Watch

Keep = Callable[[Mapping[str, Any]], None]
MOST_GROUPS: Final = 64
"""Of a step that are looked at; they come in no order that matters."""


class Alarms:
    """Looks at each step and each evaluation, and says what is to be said.

    Args:
        reward_names: the run's rewards, in the order of each completion's `rewards`.
        keep: told each alarm and each evaluation, to be kept with the run.
    """

    def __init__(self, config: RunConfig, reporter: Reporter, reward_names: Sequence[str], keep: Keep) -> None:
        self._keep_event = keep
        self._config, self._reporter, self._reward_names = config, reporter, tuple(reward_names)
        strict = config.judges.get("strict")
        self._correctness = strict.name if strict is not None and strict.name in self._reward_names else None
        self._watch = Watch(flat_steps=config.flat_steps_alarm)

    def look(self, batch: Batch, update: UpdateMetrics, row: Mapping[str, Number]) -> int:
        """Looks at a step that was just made, and tells what there is to tell.

        Args:
            batch: That was learned from; of many groups the first `MOST_GROUPS`.
            update: What the learner said of it; its warnings are passed on.
            row: The step's figures.

        Returns:
            How many alarms hold.
        """
        for warning in update.warnings:
            self._reporter.note("warning", warning)
        if self._config.example_every and (update.step - 1) % self._config.example_every == 0:
            self._show_example(batch)
        facts = StepFacts(
            step=update.step,
            samples=tuple(self._samples(batch, update.step)),
            correctness=self._correctness,
            figures=row,
        )
        self._say(self._watch.step(facts))
        return len(self._watch.active)

    def evaluated(self, evaluation: Evaluation, step: int) -> None:
        """At held-out answers of the policy after a step."""
        self._keep({"kind": "evaluation", "step": step, "accuracies": dict(evaluation.accuracies())})
        self._say(self._watch.evaluation(EvaluationFacts(step=step, scores=evaluation.scores)))

    def _keep(self, event: Mapping[str, Any]) -> None:
        try:
            self._keep_event(event)
        except RlvrError as error:  # it has been said, too; a run does not end for that
            self._reporter.note("warning", str(error))

    def refuse(self) -> None:
        """Raises AlarmError while an alarm holds with which the run is to end."""
        for name in self._watch.active:
            if name in self._config.stop_on_alarms:
                raise AlarmError(f"the alarm {name!r} holds, with which stop_on_alarms ends the run; its log says why")

    def _say(self, alarms: Iterable[Alarm]) -> None:
        for alarm in alarms:
            self._keep({"kind": "alarm", **asdict(alarm)})
            self._reporter.note("warning", f"alarm {alarm.line()}")

    def _samples(self, batch: Batch, step: int) -> Iterator[Sample]:
        for index, group in enumerate(batch.groups_P[:MOST_GROUPS]):
            for number, member in enumerate(group.scored.members):
                yield Sample(
                    completion_id=completion_id(step, index, number),
                    group=group.scored.prompt_id,
                    text=member.completion.text,
                    rewards=dict(zip(self._reward_names, member.rewards, strict=True)),
                    total=member.total,
                    num_tokens=len(member.completion.token_ids),
                    truncated=member.truncated,
                    category=group.scored.category,
                    prompt=group.built.text,
                )

    def _show_example(self, batch: Batch) -> None:
        group = batch.groups_P[0]
        best = max(group.scored.members, key=lambda member: float("-inf") if member.total is None else member.total)
        rewards = dict(zip(self._reward_names, best.rewards, strict=True))
        self._reporter.example(group.built.text, best.completion.text, rewards)
