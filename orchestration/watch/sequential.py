"""Comparing means again and again without crying wolf.

A test that is looked at after every step finds something in the end. Each look therefore spends a part of the error
that is allowed in all: look k spends alpha * 6 / (pi^2 k^2), which sums to alpha however long a run lasts (union
bound). Means are compared by their normal approximation, of groups of completions rather than completions, since those
of one prompt are alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

_LEAST_VARIANCE: Final = 0.01
"""Of a group's mean: a handful of equal values proves no certainty."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Number, sum and sum of squares of some values."""

    number: int = 0
    total: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Iterable[float]) -> Moments:
        number, total, squares = 0, 0.0, 0.0
        for value in values:
            number, total, squares = number + 1, total + value, squares + value * value
        return cls(number, total, squares)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.number + other.number, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """0 where there are no values."""
        return self.total / self.number if self.number else 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean; infinite with fewer than two values."""
        if self.number < 2:
            return math.inf
        variance = (self.squares - self.number * self.mean**2) / (self.number - 1)
        return math.sqrt(max(variance, _LEAST_VARIANCE) / self.number)


def spent(alpha: float, look: int) -> float:
    """How much of `alpha` the look of this number, from 1, may spend.

    Args:
        alpha: Error allowed over all looks together, as 0.001.
        look: From 1 on.

    Returns:
        Summed over all looks, however many there are, at most `alpha`.
    """
    return alpha * 6 / (math.pi * max(look, 1)) ** 2


def deviations(alpha: float, look: int) -> float:
    """How many standard errors a bound on one side lies from the estimate at this look.

    Args:
        alpha: As of `spent`.
        look: From 1 on.
    """
    return NormalDist().inv_cdf(1 - spent(alpha, look))


@dataclass(frozen=True, slots=True)
class Change:
    """How much a mean has grown, give or take."""

    value: float
    margin: float

    @property
    def low(self) -> float:
        return self.value - self.margin

    @property
    def high(self) -> float:
        return self.value + self.margin

    def __sub__(self, other: Change) -> Change:
        """Of two independent means."""
        return Change(self.value - other.value, math.hypot(self.margin, other.margin))


def change(before: Moments, after: Moments, *, alpha: float, look: int) -> Change:
    """From `before` to `after`; without enough values the margin is infinite.

    Args:
        before: Number, mean and spread of the values then.
        after: Of those since.
        alpha: Probability of a false finding over all looks together.
        look: Number of this look, from 1: the margin grows with it.
    """
    return Change(after.mean - before.mean, deviations(alpha, look) * math.hypot(before.error, after.error))
