"""What a watch is told, and what it says. Plain values; the standard library alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

AlarmName = Literal[
    "format_without_substance",
    "one_shape",
    "reward_broke",
    "collapse",
    "length",
    "sampler_and_learner_apart",
    "category_left_behind",
    "nothing_learned",
    "reward_not_accuracy",
    "rules_apart",
]
"""README.md says what each means."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A scored completion of a step."""

    completion_id: str
    """By which the run folder finds it again."""
    group: str
    """Its prompt's id."""
    text: str
    rewards: Mapping[str, float | None]
    """By name; None: could not be scored."""
    total: float | None
    """What it was learned from."""
    num_tokens: int = 0
    truncated: bool = False
    category: str = ""
    prompt: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFacts:
    """A step: what was sampled, what the learner and the clock say of it."""

    step: int
    samples: tuple[Sample, ...]
    correctness: str | None = None
    """Which reward decides whether an answer is right; None: none of them."""
    figures: Mapping[str, float | int | None] = field(default_factory=dict)
    """The step's row of `metrics.jsonl`."""
    reward_versions: Mapping[str, str] = field(default_factory=dict)
    """What the reward service says its rewards are, by name."""
    adapter_changed: bool | None = None
    """Whether the published bytes differ from those before; None: not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationFacts:
    """Held-out answers, always of the same problems in the same order."""

    step: int
    scores: Mapping[str, tuple[float | None, ...]]
    """By judge (`strict`, `lenient`), one a problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """One sentence, and what it rests on."""

    name: str
    step: int
    sentence: str
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    """Ids of completions that show it."""

    def line(self) -> str:
        """For a log: the name, the sentence, the figures, where to look."""
        figures = ", ".join(
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.evidence.items()
        )
        shown = f"; see {', '.join(self.examples)}" if self.examples else ""
        return f"{self.name}, step {self.step}: {self.sentence} ({figures}){shown}"
