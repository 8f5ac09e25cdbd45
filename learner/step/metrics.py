"""Adds up what the micro-batches of a step say, on this rank and then over all."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from learner.loss.metrics import WEIGHT_SQUARES

AllReduce = Callable[..., list[float]]
"""all_reduce(values, op="sum" | "max" | "min"): element-wise over the ranks."""


class MetricTotals:
    """Means are weighed by tokens; names ending in `_max` and `_min` keep the extreme. All ranks add the same names."""

    def __init__(self) -> None:
        self._parts: list[tuple[Mapping[str, float], int]] = []
        self._sums: dict[str, list[float | Tensor]] = defaultdict(list)

    def add(self, values: Mapping[str, float], num_tokens: int) -> None:
        """One micro-batch's values over `num_tokens` tokens; with none, its names only. They are not looked at before
        `reduced`: they may still be on the device."""
        self._parts.append((values, num_tokens))

    def add_sum(self, **values: float | Tensor) -> None:
        """Values that simply add up."""
        for name, value in values.items():
            self._sums[name].append(value)

    def reduced(self, all_reduce: AllReduce) -> dict[str, float]:
        """The step's values over all ranks; means and extremes of no tokens at all are 0."""
        weighted, extremes = self._added_up()
        own = {name: math.fsum(map(float, values)) for name, values in self._sums.items()}
        num_own = sum(count for _, count in self._parts)
        num_tokens, *rest = all_reduce([float(num_own), *weighted.values(), *own.values()], op="sum")
        values = dict(zip(own, rest[len(weighted) :], strict=True))
        for name, value in zip(weighted, rest[: len(weighted)], strict=True):
            values[name] = value / num_tokens if num_tokens else 0.0
        for op, found in extremes.items():
            for name, value in zip(found, all_reduce(list(found.values()), op=op), strict=True):
                values[name] = value if num_tokens else 0.0
        return _with_effective_share(values)

    def _added_up(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """This rank's sums over tokens, and its extremes by the reduction that they need."""
        weighted: dict[str, float] = defaultdict(float)
        largest: dict[str, float] = {}
        smallest: dict[str, float] = {}
        for values, count in self._parts:
            for name, value in values.items():
                if name.endswith("_max"):
                    largest[name] = max(largest.get(name, -math.inf), value if count else -math.inf)
                elif name.endswith("_min"):
                    smallest[name] = min(smallest.get(name, math.inf), value if count else math.inf)
                else:
                    weighted[name] += value * count if count else 0.0
        return weighted, {"max": largest, "min": smallest}


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
