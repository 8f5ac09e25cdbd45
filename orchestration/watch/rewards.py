"""Alarms about what the rewards say: of themselves, of each other, and of held-out answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from orchestration.watch.facts import Alarm, EvaluationFacts, StepFacts
from orchestration.watch.history import TOTAL, History
from orchestration.watch.sequential import Change, Moments, change

GREW: Final = 0.2
"""Of a reward's scale: a smaller rise is none to speak of."""
STOOD: Final = 0.05
PATIENCE: Final = 20
"""Steps for which correctness may lag behind form, which is often learned first."""
BROKE: Final = 0.35
"""Of a reward's scale, within twice `SUDDEN_STEPS`: learning is not that sudden."""
SUDDEN_STEPS: Final = 3
UNSCORED: Final = 0.1
SLOWER: Final = 10.0


class FormatWithoutSubstance:
    """A reward rises, and the one that decides whether answers are right does not."""

    name = "format_without_substance"

    def __init__(self, alpha: float) -> None:
        self._alpha, self._steps = alpha, 0

    def step(self, facts: StepFacts, history: History) -> Alarm | None:
        if not facts.correctness or not history.ready:
            return None
        right = history.change(facts.correctness, self._alpha)
        others = {name: history.change(name, self._alpha) for name in history.reward_names if name != facts.correctness}
        risen = {name: rise for name, rise in others.items() if (rise - right).low > GREW}
        self._steps = self._steps + 1 if risen and right.value < STOOD else 0
        if self._steps < PATIENCE:
            return None
        name = max(risen, key=lambda one: risen[one].value)
        return Alarm(
            name=self.name,
            step=facts.step,
            sentence=f"{name} has risen since the start and {facts.correctness} has not: form is learned, not answers",
            evidence={f"rise of {name}": risen[name].value, f"rise of {facts.correctness}": right.value},
        )


class RewardNotAccuracy:
    """What is learned from rises further than held-out accuracy does."""

    name = "reward_not_accuracy"

    def __init__(self, alpha: float) -> None:
        self._alpha, self._look = alpha, 0
        self._before: EvaluationFacts | None = None

    def evaluation(self, facts: EvaluationFacts, history: History, correctness: str | None) -> Alarm | None:
        if self._before is None:
            self._before = facts
            return None
        if not history.ready or "strict" not in facts.scores:
            return None
        self._look += 1
        name = correctness or TOTAL
        before, after = history.moments(name, history.first), history.moments(name, history.latest)
        trained = change(before, after, alpha=self._alpha, look=self._look)
        held_out = _paired(self._before.scores["strict"], facts.scores["strict"], self._alpha, self._look)
        if (trained - held_out).low <= GREW / 2:
            return None
        return Alarm(
            name=self.name,
            step=facts.step,
            sentence=f"in training {name} has risen, held-out accuracy has not kept up: what is paid is not the skill",
            evidence={"rise in training": trained.value, "rise held out": held_out.value},
        )


class RulesApart:
    """The strict and the lenient rule part, on held-out answers."""

    name = "rules_apart"

    def __init__(self, alpha: float) -> None:
        self._alpha, self._look = alpha, 0
        self._before: EvaluationFacts | None = None

    def evaluation(self, facts: EvaluationFacts, history: History, correctness: str | None) -> Alarm | None:
        if not {"strict", "lenient"} <= facts.scores.keys():
            return None
        if self._before is None:
            self._before = facts
            return None
        self._look += 1
        rises = {
            judge: _paired(self._before.scores[judge], facts.scores[judge], self._alpha, self._look)
            for judge in ("strict", "lenient")
        }
        apart = max(rises["strict"] - rises["lenient"], rises["lenient"] - rises["strict"], key=lambda one: one.low)
        if apart.low <= GREW / 2 or min(rise.value for rise in rises.values()) > STOOD:
            return None  # one overtakes the other where the answer line is learned: only a rise of one alone counts
        if _gap(facts) <= _gap(self._before):
            return None  # they come together, as where all answers are right and only the line was missing
        return Alarm(
            name=self.name,
            step=facts.step,
            sentence="the strict and the lenient rule part: one of them is being pleased, not the task",
            evidence={f"rise by the {judge} rule": rise.value for judge, rise in rises.items()},
        )


def _gap(facts: EvaluationFacts) -> float:
    """How far the two rules are from each other, over problems that both have scored."""
    pairs = zip(facts.scores["strict"], facts.scores["lenient"], strict=True)
    apart = [strict - lenient for strict, lenient in pairs if strict is not None and lenient is not None]
    return abs(sum(apart)) / len(apart) if apart else 0.0


class RewardBroke:
    """Scores that leap, cannot be had, take far longer, or come from another version of the reward."""

    name = "reward_broke"

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._versions: Mapping[str, str] = {}

    def step(self, facts: StepFacts, history: History) -> Alarm | None:
        versions, self._versions = self._versions, {**self._versions, **facts.reward_versions}
        if changed := sorted(n for n, v in facts.reward_versions.items() if versions.get(n, v) != v):
            told = {name: f"{versions[name]} → {facts.reward_versions[name]}" for name in changed}
            return self._alarm(facts, f"{', '.join(changed)} is another version now than before", told)
        latest = [*history.first, *history.latest][-SUDDEN_STEPS:]
        if len(latest) == SUDDEN_STEPS and all(step.shares["unscored"] > UNSCORED for step in latest):
            return self._alarm(
                facts,
                f"for {SUDDEN_STEPS} steps more than {UNSCORED:.0%} of the completions could not be scored",
                {"unscored": latest[-1].shares["unscored"]},
            )
        return self._slow(facts, history) or self._leap(facts, history)

    def _slow(self, facts: StepFacts, history: History) -> Alarm | None:
        usual = sorted(_number(step.figures.get("scoring_busy_s")) for step in history.first)
        now = [_number(step.figures.get("scoring_busy_s")) for step in history.latest][-SUDDEN_STEPS:]
        if len(now) < SUDDEN_STEPS or min(now) <= max(1.0, SLOWER * usual[len(usual) // 2]):
            return None
        found = {"seconds a step": now[-1], "seconds at the start": usual[len(usual) // 2]}
        return self._alarm(facts, f"scoring takes more than {SLOWER:g} times as long as at the start", found)

    def _leap(self, facts: StepFacts, history: History) -> Alarm | None:
        steps = [*history.recent][-3 * SUDDEN_STEPS :]
        if not history.ready or len(steps) < 3 * SUDDEN_STEPS:
            return None
        past, latest = steps[:SUDDEN_STEPS], steps[-SUDDEN_STEPS:]
        alpha = self._alpha / len(history.reward_names)
        for name in history.reward_names:
            before, after = history.moments(name, past), history.moments(name, latest)
            leap = change(before, after, alpha=alpha, look=history.look)
            found = {"before": before.mean, "after": after.mean}
            rises = name == facts.correctness and leap.low > BROKE  # form alone is learned as suddenly
            if rises or leap.high < -BROKE:
                return self._alarm(facts, f"{name} has leapt within {2 * SUDDEN_STEPS} steps, on its own scale", found)
            if (since := history.change(name, alpha)).high < -GREW:
                return self._alarm(
                    facts, f"{name} lies below where the run began, on its own scale", {"by": since.value}
                )
        return None

    def _alarm(self, facts: StepFacts, sentence: str, evidence: Mapping[str, float | int | str]) -> Alarm:
        return Alarm(name=self.name, step=facts.step, sentence=sentence, evidence=evidence)


def _number(value: float | int | None) -> float:
    return 0.0 if value is None else float(value)


def _paired(before: tuple[float | None, ...], after: tuple[float | None, ...], alpha: float, look: int) -> Change:
    """The mean's change over the problems that were scored both times."""
    differences = [b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    grown = Moments.of(differences)
    nothing = Moments(2, 0.0, 0.0)
    found = change(nothing, grown, alpha=alpha, look=look)
    return found if grown.number > 1 else Change(0.0, float("inf"))
