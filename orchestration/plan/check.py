"""Predictions beside what a run really did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestration.plan.measured import measured_rates, read_run, recorded_lengths
from orchestration.plan.simulate import Outcome, Split, simulate

BOUND = 0.15
"""Of a step's seconds, relative."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One run, predicted from others."""

    run: str
    predicted: Outcome
    measured: Mapping[str, float]
    """Median seconds of its steps, by the names of `Outcome`."""

    @property
    def error(self) -> float:
        """Of a step's seconds, relative to the measured ones."""
        return self.predicted.step_s / self.measured["step_s"] - 1

    @property
    def holds(self) -> bool:
        return abs(self.error) <= BOUND


def check_runs(runs: Sequence[Path], measured: Sequence[Path], *, on_cpu: bool) -> list[Check]:
    """Predict runs from the rates and lengths of others (their own, where no other is given).

    Args:
        runs: Folders of runs that were made.
        measured: Folders that rates and lengths are taken from.
        on_cpu: Whether all were made on a machine without GPUs.
    """
    checks = []
    for path in runs:
        run = read_run(path)
        sources = [read_run(source) for source in measured] or [run]
        rates = measured_rates(sources, on_cpu=on_cpu).for_slots(run.config.rollout.max_num_seqs)
        shared = on_cpu or run.config.placement == "colocated" or (run.workers, run.ranks) == (1, 1)
        split = Split(workers=run.workers, ranks=run.ranks, shared=shared, cpu=on_cpu)
        outcome = simulate(run.config, split, rates, recorded_lengths(sources), num_steps=len(run.rows))
        names = ("step_s", "generation_s", "learning_s", "publishing_s")
        checks.append(Check(run=str(path), predicted=outcome, measured={name: run.median(name) for name in names}))
    return checks
