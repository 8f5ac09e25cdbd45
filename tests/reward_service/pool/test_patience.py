"""An item that hangs is told from one that is kept waiting, and from one that has much to work out."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import pytest

from reward_service.pool.counters import PoolStatistics
from reward_service.pool.messages import BUCKETS_S, RewardStats
from reward_service.pool.patience import Patience
from reward_service.pool.process import Position, WorkerProcess
from reward_service.pool.request import Chunk, PoolRequest
from reward_service.schemas import ScoreItem
from reward_service.settings import ServiceSettings
from reward_service.types import RewardSpec

DEADLINE_S = 5.0


@dataclass
class Worker:
    """What a worker got of the processor for its item."""

    ran_s: float = 0.0
    idle_s: float = 0.0
    excused_s: float = 0.0

    def position(self) -> Position:
        return Position(0, 0, self.ran_s + self.idle_s + self.excused_s)


def seen(*counts: tuple[float, int]) -> PoolStatistics:
    """(seconds, how many items took about so long)."""
    statistics = PoolStatistics()
    for seconds, number in counts:
        buckets = [0] * (len(BUCKETS_S) + 1)
        buckets[BUCKETS_S.index(seconds)] = number
        statistics.add([RewardStats("r", buckets, seconds * number)])
    return statistics


async def judged(statistics: PoolStatistics, **got: float) -> tuple[bool, bool, bool]:
    """Whether another takes its place, whether it is left the spare time only, and whether it ends."""
    future = asyncio.get_running_loop().create_future()
    chunk = Chunk(PoolRequest((RewardSpec(name="r"),), [DEADLINE_S], [ScoreItem("")], future), [0])
    worker, patience = Worker(**got), Patience(ServiceSettings(), statistics)
    one, at = cast(WorkerProcess, worker), worker.position()
    return patience.is_stuck(one, chunk), patience.is_spinning(one, chunk, at), patience.end(one, chunk, at) is not None


QUICK, MIXED = [(0.0001, 9990), (0.1, 10)], [(0.0001, 9900), (0.1, 100)]


@pytest.mark.parametrize(
    ("known", "got", "expected"),
    [
        pytest.param([], {"ran_s": 0.05}, (False, False, False), id="young"),
        pytest.param([], {"idle_s": 1.0}, (True, False, False), id="asleep"),
        pytest.param([], {"ran_s": 1.0}, (True, False, False), id="at work, and nothing is known"),
        pytest.param([], {"ran_s": 1.3}, (True, True, False), id="at work for a quarter of its deadline"),
        pytest.param(QUICK, {"ran_s": 0.4}, (True, False, False), id="slow where all are quick"),
        pytest.param(QUICK, {"ran_s": 0.6}, (True, True, False), id="far from what any took"),
        pytest.param(MIXED, {"ran_s": 0.9}, (True, False, False), id="some take long"),
        pytest.param(QUICK[:1], {"ran_s": 0.6, "excused_s": 1.3}, (True, False, False), id="others keep it waiting"),
        pytest.param([(0.0001, 999)], {"ran_s": 0.6}, (True, False, False), id="too few to tell"),
        pytest.param([(1.0, 5000)], {"ran_s": 3.0}, (False, False, False), id="all take long"),
        pytest.param(QUICK, {"ran_s": 0.1, "excused_s": 30.0}, (False, False, False), id="starved"),
        pytest.param(QUICK, {"idle_s": 5.1, "excused_s": 9.0}, (True, False, True), id="over its deadline"),
        pytest.param(QUICK, {"ran_s": 5.1}, (True, True, True), id="spun for its deadline"),
        pytest.param(QUICK, {"excused_s": 51.0}, (False, False, True), id="starved for ever"),
    ],
)
async def test_what_becomes_of_a_worker(known: Any, got: dict[str, float], expected: tuple[bool, bool, bool]) -> None:
    assert await judged(seen(*known), **got) == expected
