"""A run's past in numbers: its first steps to compare with, and its latest."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from orchestration.watch.facts import Sample, StepFacts
from orchestration.watch.sequential import Change, Moments, change

LEAST_STEPS: Final = 5
LEAST_GROUPS: Final = 40
"""A window is full when it holds both."""
RECENT_STEPS: Final = 9
"""Kept beside the windows, whose steps may be far apart."""

TOTAL: Final = "total"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSummary:
    """A step without its texts."""

    step: int
    num_groups: int
    rewards: Mapping[str, Moments]
    """Of the groups' means, by reward and `total`."""
    categories: Mapping[str, Moments]
    """Of the groups' mean correctness, by category."""
    scales: Mapping[str, tuple[float, float]]
    """Least and greatest value by reward and `total`."""
    shares: Mapping[str, float]
    """Of all completions: `truncated`, `unscored`, `distinct` (different texts over all, in a group), and of all
    groups `flat`."""
    length: float
    """Mean, tokens."""
    figures: Mapping[str, float | int | None] = field(default_factory=dict)


def summarise(facts: StepFacts) -> StepSummary:
    """Numbers of one step; it must hold samples.

    Args:
        facts: With one sample at least; means of none are not numbers.
    """
    groups = grouped(facts.samples)
    names = {name for sample in facts.samples for name in sample.rewards}
    by_category: defaultdict[str, list[float]] = defaultdict(list)
    if facts.correctness:
        for group in groups:
            if (mean := _mean(sample.rewards.get(facts.correctness) for sample in group)) is not None:
                by_category[group[0].category].append(mean)
    number = len(facts.samples)
    return StepSummary(
        step=facts.step,
        num_groups=len(groups),
        rewards={name: _moments(groups, lambda s, name=name: s.rewards.get(name)) for name in names}  # type: ignore[misc]
        | {TOTAL: _moments(groups, lambda sample: sample.total)},
        categories={category: Moments.of(means) for category, means in by_category.items()},
        scales={name: _scale(sample.rewards.get(name) for sample in facts.samples) for name in names}
        | {TOTAL: _scale(sample.total for sample in facts.samples)},
        shares={
            "truncated": sum(sample.truncated for sample in facts.samples) / number,
            "unscored": sum(sample.total is None for sample in facts.samples) / number,
            "distinct": sum(len({sample.text for sample in group}) / len(group) for group in groups) / len(groups),
            "flat": sum(_is_flat(group) for group in groups) / len(groups),
        },
        length=sum(sample.num_tokens for sample in facts.samples) / number,
        figures=facts.figures,
    )


def grouped(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Completions of one prompt together, in the order in which the prompts come."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    return list(groups.values())


def _is_flat(group: Sequence[Sample]) -> bool:
    totals = [sample.total for sample in group if sample.total is not None]
    return not totals or max(totals) - min(totals) <= 1e-9 * max(map(abs, totals))


def _moments(groups: Iterable[Sequence[Sample]], value: Callable[[Sample], float | None]) -> Moments:
    means = (_mean(value(sample) for sample in group) for group in groups)
    return Moments.of(mean for mean in means if mean is not None)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _scale(values: Iterable[float | None]) -> tuple[float, float]:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else (0.0, 0.0)


class History:
    """The first steps of a run as far as a window needs them, and the latest of the same length."""

    def __init__(self) -> None:
        self.first: list[StepSummary] = []
        self.latest: deque[StepSummary] = deque()
        self.recent: deque[StepSummary] = deque(maxlen=RECENT_STEPS)
        """The latest, whatever the windows hold."""
        self.look = 0
        """How often full windows were compared; looks overlap, and each spends its part all the same."""
        self._scales: dict[str, tuple[float, float]] = {}

    def add(self, summary: StepSummary) -> None:
        """The next step."""
        for name, (low, high) in summary.scales.items():
            known = self._scales.get(name, (low, high))
            self._scales[name] = min(low, known[0]), max(high, known[1])
        self.recent.append(summary)
        if not is_full(self.first):
            self.first.append(summary)
            return
        self.latest.append(summary)
        while len(self.latest) > LEAST_STEPS and is_full([*self.latest][1:]):
            self.latest.popleft()
        if self.ready:
            self.look += 1

    @property
    def ready(self) -> bool:
        """Whether there are two full windows to compare."""
        return is_full(self.latest)

    def moments(self, name: str, window: Iterable[StepSummary]) -> Moments:
        """Of a reward's group means over a window, on its own scale: 0 the least value ever seen, 1 the greatest.

        Args:
            name: Of a reward; its scale is that of all steps so far, not of the window.
            window: Steps, in any order.
        """
        low, high = self._scales.get(name, (0.0, 0.0))
        width = high - low
        if width <= 0:
            return Moments()
        found = sum((step.rewards.get(name, Moments()) for step in window), Moments())
        total = (found.total - low * found.number) / width
        squares = (found.squares - 2 * low * found.total + found.number * low**2) / width**2
        return Moments(found.number, total, squares)

    def change(self, name: str, alpha: float) -> Change:
        """Of a reward, on its own scale, from the first window to the latest.

        Args:
            name: Of a reward.
            alpha: The error allowed to this comparison over all looks; each look spends a part of it.
        """
        before, after = self.moments(name, self.first), self.moments(name, self.latest)
        return change(before, after, alpha=alpha, look=self.look)

    @property
    def reward_names(self) -> list[str]:
        """All but the total."""
        return sorted(self._scales.keys() - {TOTAL})

    def category_moments(self, window: Iterable[StepSummary]) -> dict[str, Moments]:
        """Of correctness by category over a window."""
        together: dict[str, Moments] = {}
        for step in window:
            for category, moments in step.categories.items():
                together[category] = together.get(category, Moments()) + moments
        return together


def is_full(window: Sequence[StepSummary] | deque[StepSummary]) -> bool:
    """Whether it holds enough steps and groups to be compared."""
    return len(window) >= LEAST_STEPS and sum(step.num_groups for step in window) >= LEAST_GROUPS
