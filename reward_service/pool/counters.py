"""What the pool did, as counters; `reward_service.api.metrics` shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import accumulate
from typing import Final

from reward_service.pool.messages import BUCKETS_S, RewardStats

_FEW: Final = 1000


class PoolStatistics:
    """Counters since the start."""

    def __init__(self) -> None:
        self.rewards: dict[str, RewardStats] = {}
        self.restarts: Counter[str] = Counter()
        """Workers that had to be replaced, by reason."""

    def item_s(self, name: str) -> float:
        """Seconds that the reward took for an item, on average; 0 if nothing is known."""
        totals = self.rewards.get(name)
        return totals.total_s / sum(totals.buckets) if totals is not None and totals.total_s > 0 else 0.0

    def longest_s(self, name: str) -> float | None:
        """Seconds within which all but one in a thousand items of the reward ended; None if too few did to tell."""
        totals = self.rewards.get(name)
        if totals is None or (number := sum(totals.buckets)) < _FEW:
            return None
        reached = accumulate(totals.buckets)
        bounds = zip(BUCKETS_S, reached, strict=False)  # beyond the last bound nothing is known
        return next((bound for bound, up_to in bounds if up_to >= 0.999 * number), None)

    def of(self, name: str) -> RewardStats:
        """What the reward did so far, to be added to."""
        if name not in self.rewards:
            self.rewards[name] = RewardStats.none(name)
        return self.rewards[name]

    def add(self, stats: Iterable[RewardStats]) -> None:
        for one in stats:
            totals = self.of(one.name)
            totals.buckets = [old + new for old, new in zip(totals.buckets, one.buckets, strict=True)]
            totals.total_s += one.total_s
            for reason, count in one.reasons.items():
                totals.reasons[reason] = totals.reasons.get(reason, 0) + count

    def ended(self, reason: str) -> None:
        """A worker was killed, died, or was replaced."""
        self.restarts[reason] += 1
