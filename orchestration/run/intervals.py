"""Intervals for what a run claims: percentile bootstrap over the held-out problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
_BATCH = 500
"""Resamples drawn at once; all of GSM8K's held-out problems then take 10 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate and the bounds of its 95 % interval."""

    estimate: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval from {self.low} to {self.high} is upside down")


def bootstrap_mean(values: Sequence[bool | float], *, seed: int) -> Interval:
    """95 % percentile bootstrap interval of a mean (Efron 1979), by `scipy.stats.bootstrap`.

    The n values are drawn n times with replacement, `NUM_RESAMPLES` times over; the interval runs from the 2.5th to
    the 97.5th percentile of the means.

    Does not cover: when all values are equal the interval has no width, however few they are.

    Args:
        values: One value for each problem.
        seed: Equal seeds give equal intervals.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    import numpy as np
    from scipy import stats

    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or not values_N.size:
        raise ValueError(f"a bootstrap needs a list of at least one value, got shape {values_N.shape}")
    if not np.isfinite(values_N).all():
        raise ValueError(f"a bootstrap needs finite values, got {values_N[~np.isfinite(values_N)][0]}")
    estimate = math.fsum(values_N) / values_N.size
    if (values_N == values_N[0]).all():  # scipy refuses a single value
        return Interval(estimate=estimate, low=estimate, high=estimate)
    low, high = stats.bootstrap(
        (values_N,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        batch=_BATCH,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(estimate=estimate, low=float(low), high=float(high))


def bootstrap_difference(before: Sequence[bool | float], after: Sequence[bool | float], *, seed: int) -> Interval:
    """95 % interval of mean(after) - mean(before), paired: entry i of both belongs to problem i.

    Problems are resampled, not answers: the difficulty that both measurements share cancels out.

    Args:
        before: One value for each problem.
        after: One value for each of the same problems.
        seed: Equal seeds give equal intervals.

    Raises:
        ValueError: different lengths, no values, or one that is not finite.
    """
    if len(before) != len(after):
        raise ValueError(f"a paired bootstrap needs the same problems: {len(before)} before, {len(after)} after")
    differences = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    return bootstrap_mean(differences, seed=seed)


def mcnemar_exact(won: int, lost: int) -> float:
    """How likely so uneven a split of the problems that changed is if either way were as likely (McNemar 1947;
    binomial, by `scipy.stats.binomtest`).

    Args:
        won: Problems that were wrong and are right.
        lost: Problems that were right and are wrong.

    Returns:
        The two-sided p; 1 where none changed.
    """
    from scipy import stats

    return float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
