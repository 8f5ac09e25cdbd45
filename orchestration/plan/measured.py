"""Rates and lengths of runs that were made: from their metrics and records."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from orchestration.errors import ConfigError, RlvrError
from orchestration.plan.lengths import RecordedLengths, lengths_of
from orchestration.plan.rates import CPU_BLOCK, GPU_BLOCK, Rates, prefilled
from orchestration.run.ledger.names import METRICS_FILE, config_of
from orchestration.run.ledger.records import StepRecord, read_record, recorded_steps
from orchestration.settings.config import RunConfig, load_config

FEWEST_STEPS = 3
"""That say something; the first step of a start warms up and is left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRun:
    """A run folder, read."""

    path: Path
    config: RunConfig
    rows: tuple[dict[str, Any], ...]
    """Of metrics, of steps that have a record, the first of the run left out."""
    records: tuple[StepRecord, ...]

    def median(self, name: str) -> float:
        return median(float(row[name] or 0.0) for row in self.rows)

    @property
    def workers(self) -> int:
        return self.config.rollout.num_workers or 1

    @property
    def ranks(self) -> int:
        return self.config.learner.num_ranks or 1


def read_run(path: Path) -> MeasuredRun:
    """Raises ConfigError where the folder is none of a run, or has too few steps."""
    config = load_config(str(config_of(path)))
    try:
        lines = (path / METRICS_FILE).read_text(encoding="utf-8").splitlines()
        rows = {row["step"]: row for row in map(json.loads, lines)}
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path / METRICS_FILE} cannot be read: {error}") from error
    steps = [step for step in recorded_steps(path) if step in rows and step > 1]
    if len(steps) < FEWEST_STEPS:
        raise ConfigError(
            f"{str(path)!r} has {len(steps)} recorded steps after the first; {FEWEST_STEPS} are needed: raise max_steps"
        )
    return MeasuredRun(
        path=path,
        config=config,
        rows=tuple(rows[step] for step in steps),
        records=tuple(read_record(path, step) for step in steps),
    )


def recorded_lengths(runs: Sequence[MeasuredRun]) -> RecordedLengths:
    """All groups of these runs."""
    groups = [group for run in runs for record in run.records for group in record.groups_P]
    return RecordedLengths(groups, max(run.config.rollout.max_completion_length for run in runs))


def measured_rates(runs: Sequence[MeasuredRun], *, on_cpu: bool) -> Rates:
    """Rates that explain the steps of these runs best, none below 0.

    A step's generation is taken as prefill, engine steps and sequences in them, as the worker with most of them has
    them when all groups begin together (exact without staleness); its learning as a constant and the distinct tokens of
    a rank. Errors count in proportion to what is measured.
    """
    if len({run.config.model.name for run in runs}) > 1:
        raise ConfigError(f"the runs have different models: {', '.join(sorted({r.config.model.name for r in runs}))}")
    generated = [
        (work, _generation_s(row))
        for run in runs
        for row, work in zip(run.rows, _works(run, CPU_BLOCK if on_cpu else GPU_BLOCK), strict=True)
        if _generation_s(row)
    ]
    step_s, sequence_s, prefill_token_s = fit(generated)
    if not step_s + sequence_s:  # steps of a few like-sized groups may be told by their prompts alone
        if any(run.config.max_staleness for run in runs):
            raise ConfigError(
                f"the steps of {', '.join(str(run.path) for run in runs)} do not show what an engine's step takes, as "
                f"what overlaps hides it: measure a run with max_staleness=0, and give it as --measured"
            )
        (step_s, sequence_s), prefill_token_s = fit([(work[:2], measured) for work, measured in generated]), 0.0
    update_s, token_s = fit(
        [
            ((1.0, row["num_distinct_tokens"] / run.ranks), float(row["learning_busy_s"]))
            for run in runs
            for row in run.rows
            if row["learning_busy_s"]
        ]
    )
    return Rates(
        step_s=step_s,
        sequence_s=sequence_s,
        prefill_token_s=prefill_token_s,
        update_s=update_s,
        token_s=token_s,
        publish_s=median(run.median("publish_ms") for run in runs) / 1e3,
        scoring_s=median(run.median("scoring_s") for run in runs),
        other_s=median(run.median("other_s") for run in runs),
        slots=runs[0].config.rollout.max_num_seqs,
        source=f"measured: {sum(len(run.rows) for run in runs)} steps of {', '.join(str(run.path) for run in runs)}",
    )


def _generation_s(row: dict[str, Any]) -> float:
    return float(row["generation_busy_s"] or 0.0)


def _works(run: MeasuredRun, block: int) -> Iterable[tuple[float, float, float]]:
    """Of each step, for its busiest worker: engine steps, sequences summed over them, prompt tokens computed."""
    slots, workers = run.config.rollout.max_num_seqs, run.workers
    for record in run.records:
        shares = []
        for worker in range(workers):  # in turn, as `Turn.among` deals them
            groups = record.groups_P[worker::workers]
            lengths = list(itertools.chain.from_iterable(map(lengths_of, groups)))
            prompt = sum(prefilled(len(group.prompt_token_ids), len(group.members), block) for group in groups)
            shares.append((float(engine_steps(lengths, slots)), float(sum(lengths)), float(prompt)))
        yield max(shares)


def engine_steps(lengths: Sequence[int], slots: int) -> int:
    """Steps of an engine that decodes so many sequences at once, in this order.

    >>> engine_steps([3, 1, 2], 2)
    3
    """
    ends = [0] * slots
    for length in lengths:
        heapq.heappush(ends, heapq.heappop(ends) + length)
    return max(ends)


def fit(samples: Sequence[tuple[Sequence[float], float]]) -> tuple[float, ...]:
    """Coefficients, none below 0, with the least sum of squared relative errors.

    With few features the best set of those above 0 is found by trying all (the solution of non-negative least squares
    is the ordinary one on its support). Samples farther off than three times the usual error are then left out, once.

    Args:
        samples: (features, measured), measured above 0.
    """
    import numpy as np

    if not samples:
        raise RlvrError("nothing was measured: the steps have no times")
    measured = np.array([value for _, value in samples])
    rows = np.array([features for features, _ in samples], dtype=float) / measured[:, None]
    chosen = _non_negative(rows)
    errors = np.abs(rows @ chosen - 1)
    kept = errors <= 3 * max(float(np.median(errors)), 1e-3)
    return tuple(float(value) for value in (_non_negative(rows[kept]) if kept.sum() >= rows.shape[1] else chosen))


def _non_negative(rows: Any) -> Any:
    import numpy as np

    number = rows.shape[1]
    best, least = np.zeros(number), float("inf")
    for size in range(1, number + 1):
        for support in itertools.combinations(range(number), size):
            part = np.linalg.lstsq(rows[:, support], np.ones(len(rows)), rcond=None)[0]
            error = float(np.square(rows[:, support] @ part - 1).sum())
            if (part >= 0).all() and error < least - 1e-12:
                best, least = np.zeros(number), error
                best[list(support)] = part
    return best
