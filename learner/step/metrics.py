"""Adds up what the micro-batches of a step say, on this rank and then over all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from learner.loss.metrics import WEIGHT_SQUARES

AllReduce = Callable[..., list[float]]
"""all_reduce(values, op="sum" | "max" | "min"): element-wise over the ranks."""


class MetricTotals:
    """Means are weighed by tokens; names ending in `_max` and `_min` keep the extreme. All ranks add the same names."""

    def __init__(self) -> None:
        self._num_tokens = 0
        self._weighted: dict[str, float] = defaultdict(float)
        self._sums: dict[str, float] = defaultdict(float)
        self._largest: dict[str, float] = {}
        self._smallest: dict[str, float] = {}

    def add(self, values: Mapping[str, float], num_tokens: int) -> None:
        """One micro-batch's values over `num_tokens` tokens; with none, its names only."""
        self._num_tokens += num_tokens
        for name, value in values.items():
            if name.endswith("_max"):
                self._largest[name] = max(self._largest.get(name, -math.inf), value if num_tokens else -math.inf)
            elif name.endswith("_min"):
                self._smallest[name] = min(self._smallest.get(name, math.inf), value if num_tokens else math.inf)
            else:
                self._weighted[name] += value * num_tokens if num_tokens else 0.0

    def add_sum(self, **values: float) -> None:
        """Values that simply add up."""
        for name, value in values.items():
            self._sums[name] += value

    def reduced(self, all_reduce: AllReduce) -> dict[str, float]:
        """The step's values over all ranks; means and extremes of no tokens at all are 0."""
        sums = all_reduce([float(self._num_tokens), *self._weighted.values(), *self._sums.values()], op="sum")
        num_tokens, weighted, summed = sums[0], sums[1 : 1 + len(self._weighted)], sums[1 + len(self._weighted) :]
        values = dict(zip(self._sums, summed, strict=True))
        for name, value in zip(self._weighted, weighted, strict=True):
            values[name] = value / num_tokens if num_tokens else 0.0
        for extremes, op in ((self._largest, "max"), (self._smallest, "min")):
            for name, value in zip(extremes, all_reduce(list(extremes.values()), op=op), strict=True):
                values[name] = value if num_tokens else 0.0
        return _with_effective_share(values)


def _with_effective_share(values: dict[str, float]) -> dict[str, float]:
    """The share of the sample that equal weights would need to tell as much, (Σ w)² / (n·Σ w²) (Kish, Survey Sampling,
    1965), in place of the weights' mean square; a sequence's weight counts once for each of its tokens."""
    squares = values.pop(WEIGHT_SQUARES, None)
    if squares is not None:
        share = values["importance_sampling_weight_mean"] ** 2 / squares if squares else 0.0
        values["effective_sample_share"] = min(1.0, share)  # rounding
    return values


def over_iterations(iterations: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One dictionary of several optimizer steps' values: means, extremes, and the last learning rate. All have the same
    names."""
    values = {}
    for name in iterations[0]:
        found = [iteration[name] for iteration in iterations]
        if name == "learning_rate":
            values[name] = found[-1]
        elif name.endswith("_max"):
            values[name] = max(found)
        elif name.endswith("_min"):
            values[name] = min(found)
        else:
            values[name] = math.fsum(found) / len(found)
    return values
