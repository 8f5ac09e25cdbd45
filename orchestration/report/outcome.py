"""The end of a run in words: read from its summary, the same for every reporter."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestration.report.text import percent, points
from orchestration.run.intervals import Interval
from orchestration.settings.config import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One kind of held-out accuracy before and after."""

    name: str
    before: float | None
    after: float | None
    difference: Interval | None

    @property
    def change(self) -> str:
        """`+33.0 points [+25.1, +41.0]`, or what is missing."""
        if self.difference is None:
            return "not measured both before and after"
        interval = self.difference
        return f"{points(interval.estimate)} points [{points(interval.low)}, {points(interval.high)}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What the final report says."""

    headline: str
    comparisons: tuple[Comparison, ...]
    num_problems: int | None
    tokens: str
    seconds: Mapping[str, float]
    run_dir: str
    next_commands: tuple[tuple[str, str], ...]
    """(what for, command line)."""

    @property
    def wall_s(self) -> float:
        return math.fsum(self.seconds.values())


def read_outcome(summary: Mapping[str, Any], config: RunConfig | None) -> Outcome:
    """From the content of `summary.json`; whatever a stopped run does not have is left out.

    Args:
        summary: May lack any part.
        config: For the commands that are said next; None: without those that need it.
    """
    accuracy = summary.get("accuracy") or {}
    run_dir = str(summary.get("run_dir", ""))
    status = str(summary.get("status", "finished"))
    reason = f": {summary['reason']}" if summary.get("reason") else ""
    figures = {name: accuracy.get(name) or {} for name in ("strict", "lenient")}
    return Outcome(
        headline=f"{summary.get('recipe', 'run')} {status} after {summary.get('steps', 0)} steps{reason}",
        comparisons=tuple(
            _comparison(name, values)
            for name, values in figures.items()
            if values.get("before") is not None or values.get("after") is not None
        ),
        num_problems=figures["strict"].get("num_problems"),
        tokens=_tokens(summary.get("tokens") or {}),
        seconds=dict(summary.get("seconds") or {}),
        run_dir=run_dir,
        next_commands=_next_commands(run_dir, status, config),
    )


def _comparison(name: str, figures: Mapping[str, Any]) -> Comparison:
    difference = figures.get("difference")
    return Comparison(
        name=name,
        before=figures.get("before"),
        after=figures.get("after"),
        difference=None if difference is None else Interval(**difference),
    )


def accuracies(comparison: Comparison) -> str:
    """`19.0 % → 52.0 %`."""
    return f"{percent(comparison.before, 1)} → {percent(comparison.after, 1)}"


def _tokens(tokens: Mapping[str, int]) -> str:
    learned, distinct = tokens.get("learned", 0), tokens.get("distinct", 0)
    kinds = "all distinct" if distinct == learned else f"{distinct:,} distinct"
    return f"{tokens.get('generated', 0):,} generated, {learned:,} learned from ({kinds})"


def _next_commands(run_dir: str, status: str, config: RunConfig | None) -> tuple[tuple[str, str], ...]:
    if not run_dir or config is None:
        return ()
    folder, model = shlex.quote(run_dir), shlex.quote(config.model.name)
    evaluate = (
        "measure the adapter again",
        f"rlvr eval --model {model} --adapter {folder}/adapter --data {folder}/config.yaml",
    )
    # A submitted run lay in the Ray it was a job of, which may be gone.
    here = " ray_address=null" if config.ray_address == "auto" else ""
    go_on = ("go on from here", f"rlvr train {folder}/config.yaml run_dir={folder}{here}")
    return (evaluate,) if status == "finished" else (go_on, evaluate)
