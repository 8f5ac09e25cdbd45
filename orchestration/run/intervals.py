"""Intervals for what a run claims: percentile bootstrap over the held-out problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
_MAX_CELLS = 1_000_000  # counts drawn at once: 8 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate and the bounds of its 95 % interval."""

    estimate: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval from {self.low} to {self.high} is upside down")

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def bootstrap_mean(values: Sequence[bool | float], *, seed: int, num_resamples: int = 10_000) -> Interval:
    """95 % percentile bootstrap interval of a mean (Efron 1979).

    The n values are drawn n times with replacement, `num_resamples` times over; the interval runs from the 2.5th to
    the 97.5th percentile of the means. Equal seeds give equal intervals.

    Does not cover: when all values are equal the interval has no width, however few they are.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    import numpy as np

    values_N = np.asarray(values, dtype=np.float64)
    if values_N.ndim != 1 or not values_N.size:
        raise ValueError(f"a bootstrap needs a list of at least one value, got shape {values_N.shape}")
    if not np.isfinite(values_N).all():
        raise ValueError(f"a bootstrap needs finite values, got {values_N[~np.isfinite(values_N)][0]}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}")
    means_R = _resampled_means(values_N, seed, num_resamples)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means_R, [tail, 1 - tail])
    return Interval(estimate=math.fsum(values_N) / values_N.size, low=float(low), high=float(high))


def bootstrap_difference(
    before: Sequence[bool | float], after: Sequence[bool | float], *, seed: int, num_resamples: int = 10_000
) -> Interval:
    """95 % interval of mean(after) - mean(before), paired: entry i of both belongs to problem i.

    Problems are resampled, not answers: the difficulty that both measurements share cancels out.

    Raises:
        ValueError: different lengths, no values, or one that is not finite.
    """
    if len(before) != len(after):
        raise ValueError(f"a paired bootstrap needs the same problems: {len(before)} before, {len(after)} after")
    differences = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
    return bootstrap_mean(differences, seed=seed, num_resamples=num_resamples)


def _resampled_means(values_N: NDArray[np.float64], seed: int, num_resamples: int) -> NDArray[np.float64]:
    """Means of the resamples, shape [R].

    How often each of the K distinct values is drawn is multinomial, so only counts are drawn: for right and wrong
    answers K is at most 3, whatever N.
    """
    import numpy as np

    values_K, counts_K = np.unique(values_N, return_counts=True)
    random = np.random.default_rng(seed)
    rows = max(1, _MAX_CELLS // len(values_K))
    parts = [
        random.multinomial(values_N.size, counts_K / values_N.size, size=min(rows, num_resamples - start)) @ values_K
        for start in range(0, num_resamples, rows)
    ]
    return np.concatenate(parts) / values_N.size
