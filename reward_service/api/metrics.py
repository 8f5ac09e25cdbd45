"""What GET /metrics shows, in Prometheus's text format.

Per-item figures come from the workers as histograms that are added up, not item by item: an observation costs a
microsecond, and there are tens of thousands a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from reward_service.pool.counters import PoolStatistics
from reward_service.pool.messages import BUCKETS_S

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_REQUEST_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Pool(Protocol):
    """What is shown of the pool of workers."""

    @property
    def statistics(self) -> PoolStatistics: ...

    @property
    def queued_items(self) -> int: ...

    @property
    def num_workers(self) -> int: ...


class Metrics:
    """The counters of one service; not those of other services in this process."""

    def __init__(self, pool: Pool, audit_in_flight: Callable[[], int] | None) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "reward_requests", "Requests answered.", ["endpoint", "status"], registry=self._registry
        )
        self.items = Counter("reward_items", "Items of requests that were answered.", registry=self._registry)
        self.unscorable = Counter(
            "reward_unscorable_items",
            "Items of /get_reward, /rm and /test_program without a score, which these cannot say.",
            ["profile", "reward", "reason"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "reward_request_seconds",
            "Seconds from a request's head to its answer.",
            ["endpoint"],
            buckets=_REQUEST_BUCKETS_S,
            registry=self._registry,
        )
        self._answers: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self._registry.register(_PoolCollector(pool, audit_in_flight))

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """A request was answered. The labelled counters are kept, as finding them takes longer than counting."""
        key = endpoint, status
        if key not in self._answers:
            self._answers[key] = self.requests.labels(endpoint, str(status)), self.seconds.labels(endpoint)
        requests, histogram = self._answers[key]
        requests.inc()
        histogram.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _PoolCollector(Collector):
    def __init__(self, pool: Pool, audit_in_flight: Callable[[], int] | None) -> None:
        self._pool, self._audit_in_flight = pool, audit_in_flight

    def collect(
        self,
    ) -> Iterator[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        statistics = self._pool.statistics
        yield GaugeMetricFamily("reward_queued_items", "Items that wait for a worker.", self._pool.queued_items)
        yield GaugeMetricFamily("reward_workers", "Worker processes.", self._pool.num_workers)
        seconds = HistogramMetricFamily("reward_item_seconds", "Seconds a reward took for an item.", labels=["reward"])
        unscored = CounterMetricFamily("reward_unscored_items", "Items without a score.", labels=["reward", "reason"])
        for name, totals in statistics.rewards.items():
            bounds = [*(str(bound) for bound in BUCKETS_S), "+Inf"]
            counts = [sum(totals.buckets[: index + 1]) for index in range(len(bounds))]
            seconds.add_metric([name], list(zip(bounds, counts, strict=True)), totals.total_s)
            for reason, count in totals.reasons.items():
                unscored.add_metric([name, reason], count)
        yield seconds
        yield unscored
        restarts = CounterMetricFamily("reward_workers_restarted", "Workers replaced.", labels=["reason"])
        for reason, count in statistics.restarts.items():
            restarts.add_metric([reason], count)
        yield restarts
        if self._audit_in_flight is not None:
            yield GaugeMetricFamily(
                "reward_audit_bytes", "Bytes handed to the audit log and not yet committed.", self._audit_in_flight()
            )
