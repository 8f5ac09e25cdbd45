"""What a step shows that a person should know: nothing to learn from, a sampler that disagrees; and an example."""

from __future__ import annotations

from collections.abc import Sequence

from learner.types import UpdateMetrics
from orchestration.run.flow import Batch
from orchestration.run.reporter import Reporter
from orchestration.run.summary import Tally
from orchestration.settings.config import RunConfig

WEIGHT_ALARM = 0.5, 2.0
"""Bounds of the mean importance weight of a step; beyond them it is said aloud. It is 1 where both sides agree."""


class Alarms:
    """Looks at each step, and says what is to be said."""

    def __init__(self, config: RunConfig, reporter: Reporter, tally: Tally, reward_names: Sequence[str]) -> None:
        self._config, self._reporter, self._tally = config, reporter, tally
        self._reward_names = reward_names

    def look(self, batch: Batch, update: UpdateMetrics) -> None:
        """At a step that was just made."""
        self._say_if_flat(batch)
        self._say_if_off_policy(update)
        for warning in update.warnings:
            self._reporter.note("warning", warning)
        if self._config.example_every and (update.step - 1) % self._config.example_every == 0:
            self._show_example(batch)

    def _say_if_flat(self, batch: Batch) -> None:
        self._tally.flat_steps = self._tally.flat_steps + 1 if all(g.flat for g in batch.scored_P) else 0
        if self._tally.flat_steps and self._tally.flat_steps % self._config.flat_steps_alarm == 0:
            self._reporter.note(
                "warning",
                f"for {self._tally.flat_steps} steps all completions of each group earned the same: nothing is "
                f"learned. Try easier or more varied problems, a higher rollout.temperature, more "
                f"rollout.num_generations, or drop_flat_groups=true",
            )

    def _say_if_off_policy(self, update: UpdateMetrics) -> None:
        """At the first such step, and then ever more seldom: after 2, 4, 8 … in a row."""
        low, high = WEIGHT_ALARM
        weight = update.values.get("importance_sampling_weight_mean")
        off = weight is not None and update.values.get("num_loss_tokens", 1) > 0 and not low <= weight <= high
        steps = self._tally.off_policy_steps = self._tally.off_policy_steps + 1 if off else 0
        if steps and steps & (steps - 1) == 0:
            self._reporter.note(
                "warning",
                f"step {update.step}: the sampler correction multiplies the loss by {weight:.3g} on average, and for "
                f"{steps} step(s) now by less than {low:g} or more than {high:g}: the sampler's log-probs are not the "
                f"learner's (sampling_logprob_difference_mean in metrics.jsonl). Try one precision for rollout.dtype "
                f"and learner.dtype, a smaller max_staleness or learner.learning_rate, or "
                f"learner.loss.vllm_importance_sampling_mode=token_truncate",
            )

    def _show_example(self, batch: Batch) -> None:
        group = batch.groups_P[0]
        best = max(group.scored.members, key=lambda member: float("-inf") if member.total is None else member.total)
        rewards = dict(zip(self._reward_names, best.rewards, strict=True))
        self._reporter.example(group.built.text, best.completion.text, rewards)
