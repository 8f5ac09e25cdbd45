"""How long a worker may be at an item: when another takes its place, when it is left the spare time only, when it ends.

An item that hangs is told from one that is kept waiting by what the worker got of the processor, and from one that has
much to work out by what such items took so far: on a busy machine these, too, took longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from reward_service.pool.counters import PoolStatistics
from reward_service.pool.process import Position, WorkerProcess
from reward_service.pool.request import Chunk, Verdict
from reward_service.settings import ServiceSettings
from reward_service.types import Reason

STUCK_S: Final = 0.1
"""A worker that slept for longer than this at one item, or had the processor for longer, no longer counts as one of
those that keep the queue short."""
_SLOW: Final = 4.0
"""Unless items of that reward take long: so many times as long as they do on average."""
_FAR: Final = 10.0
"""So many times as long as all but one in a thousand takes no item that ends."""


@dataclass(frozen=True, slots=True)
class End:
    """Why a worker ends in the middle of a chunk, and what it says of the item that it is at."""

    reason: str
    verdict: Verdict | None = None


class Patience:
    """Judges workers at items, by what is known of the rewards."""

    def __init__(self, settings: ServiceSettings, statistics: PoolStatistics) -> None:
        self._max_factor = settings.max_deadline_factor
        self._statistics = statistics

    def is_stuck(self, worker: WorkerProcess, chunk: Chunk) -> bool:
        """Whether another is to take its place while it is at its item."""
        at = worker.position()
        if at is None or at.elapsed_s <= STUCK_S:
            return False
        usual_s = self._statistics.item_s(chunk.request.specs[at.reward].name)
        return worker.idle_s > STUCK_S or worker.ran_s > max(STUCK_S, _SLOW * usual_s)

    def end(self, worker: WorkerProcess, chunk: Chunk, at: Position) -> End | None:
        """Why it is to end now: its item is over its deadline, but for time in which others had the processors."""
        deadline_s = chunk.request.deadlines_s[at.reward]
        excused_s = min(worker.excused_s, deadline_s * (self._max_factor - 1))
        if at.elapsed_s - excused_s <= deadline_s:
            return None
        waited = f", and {excused_s:.1f} s in which others had the processors" if excused_s >= 0.1 else ""
        message = f"not done within its deadline of {deadline_s:g} s{waited}"
        return End("timeout", Verdict(at.item, at.reward, Reason.TIMEOUT, message))

    def is_spinning(self, worker: WorkerProcess, chunk: Chunk, at: Position) -> bool:
        """Whether it is to be left the spare time only: it had more of the processor than its item should need.

        Not while others keep it waiting: there it would get nothing any more.
        """
        if worker.excused_s >= 2 * worker.ran_s:
            return False
        deadline_s, name = chunk.request.deadlines_s[at.reward], chunk.request.specs[at.reward].name
        patience_s = max(deadline_s / 4, 2 * _SLOW * self._statistics.item_s(name))
        if (longest_s := self._statistics.longest_s(name)) is not None:
            patience_s = min(patience_s, max(deadline_s / 10, _FAR * longest_s))
        return worker.ran_s > max(STUCK_S, patience_s)
