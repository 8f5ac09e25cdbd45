"""Totals of a run, and the summary they end in."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from learner.types import UpdateMetrics
from orchestration.run.flow import Batch
from orchestration.run.intervals import bootstrap_difference
from orchestration.run.metrics import OTHER, PhaseClock
from orchestration.settings.config import RunConfig

Summary = dict[str, Any]
Scores = Mapping[str, Sequence[float | None]]
"""Held-out scores by name (`strict`, `lenient`), one a problem; None: could not be scored."""


@dataclass(slots=True)
class Tally:
    """Totals so far."""

    step: int = 0
    """The policy's version, as the learner last told it."""
    generated_tokens: int = 0
    learned_tokens: int = 0
    distinct_tokens: int = 0
    dropped_flat_groups: int = 0
    publish_ms: list[float] = field(default_factory=list)

    @classmethod
    def restored(cls, step: int, tokens: Mapping[str, int]) -> Tally:
        """The totals of a stopped run."""
        return cls(
            step=step,
            generated_tokens=tokens.get("generated", 0),
            learned_tokens=tokens.get("learned", 0),
            distinct_tokens=tokens.get("distinct", 0),
        )

    def add(self, batch: Batch, update: UpdateMetrics) -> None:
        """Count a step that the learner has made."""
        self.step = update.step
        self.generated_tokens += batch.num_generated_tokens
        self.learned_tokens += update.num_tokens
        self.distinct_tokens += update.num_distinct_tokens
        self.dropped_flat_groups += batch.num_dropped_flat

    def tokens(self) -> dict[str, int]:
        """Tokens by kind: sampled; learned from, each sequence counted whole; really sent through the model."""
        return {
            "generated": self.generated_tokens,
            "learned": self.learned_tokens,
            "distinct": self.distinct_tokens,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """Where the clock stood at the beginning of a step."""

    at: float
    seconds: Mapping[str, float]
    busy: Mapping[str, float]

    @classmethod
    def now(cls, clock: PhaseClock) -> Spent:
        """The clock's figures at this moment."""
        return cls(at=time.perf_counter(), seconds=clock.seconds(), busy=clock.busy_seconds())


def grown(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """By how much each figure grew."""
    return {name: value - before.get(name, 0.0) for name, value in now.items()}


def add_seconds(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """Sum by phase."""
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in {**first, **second}}


def summarise(
    *,
    config: RunConfig,
    run_dir: str,
    status: str,
    reason: str | None,
    tally: Tally,
    start_s: Mapping[str, float] | None,
    seconds: Mapping[str, float],
    before: Scores | None,
    after: Scores | None,
    categories: Sequence[str] = (),
) -> Summary:
    """The content of `summary.json`; its `other_share` is the share of time that no phase answers for.

    Args:
        config: the run's settings.
        run_dir: its folder.
        status: `finished`, `stopped` or `failed`.
        reason: why, where it did not finish.
        tally: what was counted.
        start_s: wall time from the command to the end of the first step, by phases that may overlap, and in total;
            None when no step was made.
        seconds: wall time by phase since the rooms were up.
        before, after: scores of the same held-out problems by judge; compared in `accuracy`, with the paired 95 %
            bootstrap interval of the difference.
        categories: of the held-out problems, one each; where there are several, `by_category` compares within them.
    """
    return {
        "status": status,
        **({"reason": reason} if reason else {}),
        "recipe": config.recipe,
        "run_dir": run_dir,
        "seed": config.seed,
        "control": config.reward.control,
        "steps": tally.step,
        "tokens": tally.tokens(),
        "start_s": None if start_s is None else dict(start_s),
        "seconds": dict(seconds),
        "wall_s": sum(seconds.values()),
        "other_share": seconds.get(OTHER, 0.0) / max(sum(seconds.values()), 1e-9),
        "dropped_flat_groups": tally.dropped_flat_groups,
        "publish_ms_median": sorted(tally.publish_ms)[len(tally.publish_ms) // 2] if tally.publish_ms else None,
        "accuracy": {
            name: _compare_all(
                None if before is None else before.get(name),
                None if after is None else after.get(name),
                categories,
                seed=config.seed,
            )
            for name in config.judges
        },
    }


def _compare_all(
    before: Sequence[float | None] | None, after: Sequence[float | None] | None, categories: Sequence[str], *, seed: int
) -> dict[str, Any]:
    result = _compare(before, after, seed=seed)
    names = sorted(set(categories))
    if len(names) > 1:
        result["by_category"] = {
            name: _compare(_only(before, categories, name), _only(after, categories, name), seed=seed) for name in names
        }
    return result


def _only(scores: Sequence[float | None] | None, categories: Sequence[str], name: str) -> list[float | None] | None:
    if scores is None:
        return None
    return [score for score, category in zip(scores, categories, strict=True) if category == name]


def _compare(
    before: Sequence[float | None] | None, after: Sequence[float | None] | None, *, seed: int
) -> dict[str, Any]:
    """Accuracies and, with both, their paired difference. Problems unscored in either are left out of that."""
    result: dict[str, Any] = {"before": _accuracy(before), "after": _accuracy(after)}
    if before is None or after is None:
        return result
    pairs = [(b, a) for b, a in zip(before, after, strict=True) if b is not None and a is not None]
    if pairs:
        interval = bootstrap_difference([b for b, _ in pairs], [a for _, a in pairs], seed=seed)
        result |= {"difference": asdict(interval), "num_problems": len(pairs)}
    return result


def _accuracy(scores: Sequence[float | None] | None) -> float | None:
    scored = [score for score in scores or () if score is not None]
    return sum(scored) / len(scored) if scored else None
