"""Alarms about the training itself: variety, length, agreement of sampler and learner, balance, progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestration.watch.facts import Alarm, StepFacts
from orchestration.watch.history import History, StepSummary
from orchestration.watch.sequential import Moments, change

STEPS: Final = 5
"""In a row, before something that holds of single steps is said."""
SOLVED: Final = 0.9
"""Mean correctness from which there is little left to learn."""
RIGHT: Final = 0.5
"""Mean correctness from which equal answers are what learning looks like."""
ALIKE, FLAT = 0.25, 0.9
LONGER, CUT = 2.0, 0.3
WEIGHTS: Final = 0.5, 2.0
"""Bounds of the sampler correction's mean weight, which is 1 where both sides agree."""
APART_NATS: Final = 0.5
GAP_NATS, GAP_GROWTH = 0.05, 5.0
ROSE, FELL = 0.2, 0.05


class Collapse:
    """The policy gives one answer to everything, and it is not the right one."""

    name = "collapse"

    def __init__(self, alpha: float) -> None:
        del alpha

    def step(self, facts: StepFacts, history: History) -> Alarm | None:
        latest = _latest(history)
        if len(latest) < STEPS or _are_right(RIGHT, facts, latest):
            return None
        at_first = sum(step.shares["distinct"] for step in history.first) / len(history.first)
        bound = min(ALIKE, at_first / 2)
        if not all(step.shares["distinct"] < bound for step in latest):
            return None
        evidence = {"distinct in a group": latest[-1].shares["distinct"], "at the start": at_first}
        if isinstance(entropy := facts.figures.get("entropy"), float):
            evidence["entropy"] = entropy
        sentence = f"for {STEPS} steps nearly all completions of a group have been the same"
        sentence += ", and fewer than half are right" if facts.correctness else ""
        return Alarm(name=self.name, step=facts.step, sentence=sentence, evidence=evidence)


class Length:
    """Completions grow until they are cut off."""

    name = "length"

    def __init__(self, alpha: float) -> None:
        del alpha

    def step(self, facts: StepFacts, history: History) -> Alarm | None:
        latest = _latest(history)
        if not history.ready or len(latest) < STEPS:
            return None
        length = sum(step.length for step in history.first) / len(history.first)
        cut = sum(step.shares["truncated"] for step in history.first) / len(history.first)
        is_cut = all(step.shares["truncated"] > cut + CUT for step in latest)
        is_longer = all(step.length > LONGER * length and step.shares["truncated"] > cut + CUT / 3 for step in latest)
        if not is_cut and not is_longer:
            return None
        return Alarm(
            name=self.name,
            step=facts.step,
            sentence="completions grow and are cut off before they end",
            evidence={
                "tokens": latest[-1].length,
                "at the start": length,
                "cut off": latest[-1].shares["truncated"],
                "cut off at the start": cut,
            },
            examples=tuple(sample.completion_id for sample in facts.samples if sample.truncated)[:3],
        )


class Apart:
    """Sampler and learner do not hold the same policy."""

    name = "sampler_and_learner_apart"

    def __init__(self, alpha: float) -> None:
        del alpha
        self._first_gaps: list[float] = []

    def step(self, facts: StepFacts, history: History) -> Alarm | None:
        figures = facts.figures
        weight, kl = figures.get("importance_sampling_weight_mean"), figures.get("kl_to_sampler_k3")
        low, high = WEIGHTS
        if facts.adapter_changed is False and (figures.get("grad_norm") or 0) > 0:
            return self._alarm(facts, "the update changed nothing in the adapter that was published", {})
        if weight is not None and figures.get("num_loss_tokens", 1) and not low <= weight <= high:
            told = (
                f"the sampler correction multiplies the loss by less than {low:g} or more than {high:g} on average: "
                f"try one precision for rollout.dtype and learner.dtype, a smaller max_staleness or "
                f"learner.learning_rate, or learner.loss.vllm_importance_sampling_mode=token_truncate"
            )
            return self._alarm(facts, told, {"mean weight": float(weight)})
        if kl is not None and kl > APART_NATS:
            told = f"a sampled token's log-probability differs so much that their KL is over {APART_NATS:g} nats"
            return self._alarm(facts, told, {"KL to the sampler": float(kl)})
        return self._gap(facts)

    def _gap(self, facts: StepFacts) -> Alarm | None:
        gap = facts.figures.get("probe_difference")
        if gap is None:
            return None
        if len(self._first_gaps) < STEPS:
            self._first_gaps.append(float(gap))
            return None
        usual = sorted(self._first_gaps)[len(self._first_gaps) // 2]
        if gap <= max(GAP_NATS, GAP_GROWTH * usual):
            return None
        told = "what is served and what was trained differ more and more"
        return self._alarm(facts, told, {"gap in nats": float(gap), "at the start": usual})

    def _alarm(self, facts: StepFacts, sentence: str, evidence: dict[str, float]) -> Alarm:
        return Alarm(name=self.name, step=facts.step, sentence=sentence, evidence=evidence)


class CategoryLeftBehind:
    """The whole gets better while a category gets worse."""

    name = "category_left_behind"

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha

    def step(self, facts: StepFacts, history: History) -> Alarm | None:
        if not facts.correctness or not history.ready:
            return None
        before = history.category_moments(history.first)
        after = history.category_moments(history.latest)
        names = sorted(name for name in before.keys() & after.keys() if before[name].number > 1 < after[name].number)
        if len(names) < 2:
            return None
        alpha = self._alpha / len(names)
        for name in names:
            rest_before, rest_after = _without(before, name), _without(after, name)
            rest = change(rest_before, rest_after, alpha=alpha, look=history.look)
            own = change(before[name], after[name], alpha=alpha, look=history.look)
            if (rest - own).low > ROSE / 2 and rest.value > ROSE and own.value < -FELL:
                return Alarm(
                    name=self.name,
                    step=facts.step,
                    sentence=f"category {name!r} gets worse while the others get better: give it more weight, or "
                    f"advantages by category",
                    evidence={"rise of the category": own.value, "rise of the others": rest.value},
                    examples=tuple(s.completion_id for s in facts.samples if s.category == name)[:3],
                )
        return None


class NothingLearned:
    """Groups without a difference, or an update without a gradient."""

    name = "nothing_learned"

    def __init__(self, alpha: float, steps: int = STEPS) -> None:
        del alpha
        self._num_steps = steps
        self._flat_steps = self._still_steps = 0

    def step(self, facts: StepFacts, history: History) -> Alarm | None:
        latest = _latest(history)
        flat = latest[-1].shares["flat"]
        norm = latest[-1].figures.get("grad_norm")
        self._flat_steps = self._flat_steps + 1 if flat > FLAT else 0
        self._still_steps = self._still_steps + 1 if norm == 0 else 0
        if _are_right(SOLVED, facts, latest):
            return None
        if self._flat_steps >= self._num_steps:
            sentence = (
                f"for {self._flat_steps} steps nearly all completions of each group earned the same, and nothing is "
                f"learned: try easier or more varied problems, a higher rollout.temperature, more "
                f"rollout.num_generations, or drop_flat_groups=true"
            )
        elif self._still_steps >= self._num_steps:
            sentence = f"for {self._still_steps} steps the gradient was zero though completions were paid differently"
        else:
            return None
        return Alarm(name=self.name, step=facts.step, sentence=sentence, evidence={"flat groups": flat})


def _latest(history: History) -> list[StepSummary]:
    return [*history.first, *history.latest][-STEPS:]


def _are_right(share: float, facts: StepFacts, latest: Sequence[StepSummary]) -> bool:
    if not facts.correctness:
        return False
    moments = sum((step.rewards.get(facts.correctness, Moments()) for step in latest), Moments())
    return moments.mean >= share


def _without(categories: dict[str, Moments], name: str) -> Moments:
    return sum((moments for other, moments in categories.items() if other != name), Moments())
