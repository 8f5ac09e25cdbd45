"""The pool: requests in, chunks to workers, results together again, and a watch over every worker.

What it waits for: batches from workers, which come as sockets become readable; the watch, every `_WATCH_S` while a
worker has a job; a request's own deadline. Nothing else can hold it up.

A worker that is at one item for longer than that reward's deadline is killed. Time in which it, or a process that it
started, waited for a processor is not the item's fault and does not count, up to `max_deadline_factor` deadlines. The
item gets `timeout` for that reward; the item's other rewards and the rest of the chunk are scored again by another
worker, in smaller chunks, so that one bad item costs its deadline and nothing else. When a worker dies by itself, the
item that it was at is tried once more, alone; if that worker dies too, the item gets `verifier_error`.

While a worker is held up another takes its place, up to `max_workers`: it sleeps, or has had more of the processor than
such items take. One that has had much more is left the processor's spare time only, unless others keep the machine
busy: there that would be none. Of too many workers the one that has done least goes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final

from reward_service.errors import QueueFullError, ShuttingDownError
from reward_service.pool.applying import score_item
from reward_service.pool.counters import PoolStatistics
from reward_service.pool.messages import Batch, ScoredItem
from reward_service.pool.patience import STUCK_S, End, Patience
from reward_service.pool.process import WorkerFactory, WorkerProcess
from reward_service.pool.processor import kept_busy_by_others, waited_by_descendants
from reward_service.pool.request import Chunk, PoolRequest, verdict_on_death
from reward_service.schemas import ScoreItem
from reward_service.scoring import Plan
from reward_service.settings import ServiceSettings
from reward_service.types import RewardSpec

logger = logging.getLogger(__name__)

_WATCH_S: Final = 0.02
_CHUNK_S: Final = 0.005
_SCAN_S: Final = 0.5
"""Between two looks at the processes that workers started; workers that slept for less start none that matter."""
_LAST_LOOK_S: Final = 0.02
_SMOOTHING: Final = 0.1
_OTHER_PROCESSES: Final = 2
"""Of ours beside workers: the server, and the audit writer."""
_TAKE_UP_S: Final = 30.0
"""A worker that has not begun a job after this long is as good as dead."""
_REAP_S: Final = 10.0
_FIRST_BACKOFF_S: Final = 0.1
_MAX_BACKOFF_S: Final = 10.0


class WorkerPool:
    """Scores on killable processes. All methods are called on one event loop."""

    def __init__(self, settings: ServiceSettings, preload: Sequence[str]) -> None:
        self._settings = settings
        self._factory = WorkerFactory(settings, list(preload))
        self._queue: deque[Chunk] = deque()
        self._idle: list[WorkerProcess] = []
        self._jobs: dict[WorkerProcess, tuple[Chunk, float]] = {}
        """What each worker is at, and since when."""
        self._workers: set[WorkerProcess] = set()
        self._leaving: set[WorkerProcess] = set()
        """Workers that were let go, and have not ended yet."""
        self._requests: set[PoolRequest] = set()
        self._stuck: set[WorkerProcess] = set()
        """Workers that the last look found held up by the item that they are at."""
        self._ends: dict[WorkerProcess, End] = {}
        """Workers that are to end, and why."""
        self._starting = 0
        self._failed_starts = 0
        self._queued_items = 0
        self._closing = False
        self._watching: asyncio.TimerHandle | None = None
        self._expiring: asyncio.TimerHandle | None = None
        self._starved_s = 0.0
        """Seconds that workers with a job waited for a processor, on average over these workers, since the start."""
        self._others_share = 0.0
        """In how many of the last looks others kept the machine busy; of one alone chance decides."""
        self._next_scan = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._progress_here = [0.0, -1.0]
        """As a worker's, for `score_here`; nobody looks at it."""
        self.statistics = PoolStatistics()
        self._patience = Patience(settings, self.statistics)

    async def start(self) -> None:
        """Starts the workers, without waiting for them."""
        self._grow()

    @property
    def queued_items(self) -> int:
        """Items that no worker has yet."""
        return self._queued_items

    @property
    def num_workers(self) -> int:
        """Workers that live, held up or not."""
        return len(self._workers)

    @property
    def ready(self) -> bool:
        """Whether there is a worker that can score, or is scoring and not held up."""
        return not self._closing and any(worker not in self._stuck for worker in (*self._idle, *self._jobs))

    @property
    def has_idle_worker(self) -> bool:
        """Whether a request's first items would not have to wait."""
        return bool(self._idle)

    async def score(
        self, specs: tuple[RewardSpec, ...], deadlines_s: Sequence[float], items: Sequence[ScoreItem]
    ) -> Sequence[ScoredItem]:
        """Scores a request's items, at the latest when `request_timeout_s` is over.

        Args:
            specs: the rewards, whose names and parameters were found to be good.
            deadlines_s: for each of them, seconds for one item.
            items: the completions.

        Returns:
            One result an item, in the items' order; what was not reached in time has no score.

        Raises:
            QueueFullError: too much waits already.
            ShuttingDownError: the pool takes nothing more.
        """
        if not items:
            return ()
        self._require_open()
        room = self._settings.max_queued_items - self._queued_items
        if len(items) > room and self._queued_items > 0:
            raise QueueFullError(
                f"{self._queued_items} items wait already, and max_queued_items = {self._settings.max_queued_items};"
                " try again soon"
            )
        loop = asyncio.get_running_loop()
        request = PoolRequest(specs, deadlines_s, items, loop.create_future(), time.monotonic(), self._starved_s)
        self._requests.add(request)
        if self._expiring is None:
            self._expiring = loop.call_later(self._settings.request_timeout_s, self._expire)
        length = self._chunk_length(specs, len(items))
        for start in range(0, len(items), length):
            self._enqueue(Chunk(request, list(range(start, min(start + length, len(items))))))
        self._pump()
        try:
            return await request.future
        finally:
            request.abandoned = True
            self._requests.discard(request)

    def score_here(self, plan: Plan, items: Sequence[ScoreItem]) -> Sequence[ScoredItem]:
        """Scores a request's items at once, in this process: nothing bounds the time. What comes out is the same.

        Args:
            plan: the rewards.
            items: the completions.

        Raises:
            ShuttingDownError: the pool takes nothing more.
        """
        self._require_open()
        stats = [self.statistics.of(planned.reward.name) for planned in plan]
        return [score_item(plan, item, stats, self._progress_here) for item in items]

    def _require_open(self) -> None:
        if self._closing:
            raise ShuttingDownError("the service is shutting down; try another one, or later")

    def _expire(self) -> None:
        """Ends requests whose time is over; that in which workers got no processor does not count. One timer for all:
        each has as long as the others."""
        timeout_s, now, next_s = self._settings.request_timeout_s, time.monotonic(), math.inf
        for request in list(self._requests):
            starved_s = self._starved_s - request.starved_before_s
            excused_s = min(starved_s, timeout_s * (self._settings.max_deadline_factor - 1))
            left_s = request.began + timeout_s + excused_s - now
            if left_s <= 0 and request.is_over:
                request.expire(timeout_s)
                continue
            # Once it is over there is a last look: where this process got no processor, answers may not have been read.
            request.is_over = left_s <= 0
            next_s = min(next_s, max(left_s, _LAST_LOOK_S))
        self._expiring = None if next_s == math.inf else asyncio.get_running_loop().call_later(next_s, self._expire)

    def hurry(self) -> None:
        """Answers all requests with what there is, as the service ends."""
        for request in list(self._requests):
            request.expire(0.0)

    async def close(self) -> None:
        """Kills what still works and waits for all workers' ends; what was not reached has no score."""
        self.hurry()
        self._closing = True
        for worker in list(self._workers):
            worker.kill()
        for timer in (self._watching, self._expiring):
            if timer is not None:
                timer.cancel()
        while self._tasks or self._workers:
            await asyncio.wait(self._tasks or {asyncio.ensure_future(asyncio.sleep(0.01))})

    def _chunk_length(self, specs: Sequence[RewardSpec], num_items: int) -> int:
        """Items of a chunk: `_CHUNK_S` of work by what its rewards took so far, or every worker its share if that is
        not known. More would keep other requests waiting, less would be mostly messages."""
        item_s = sum(self.statistics.item_s(spec.name) for spec in specs)
        share = math.ceil(num_items / self._settings.num_workers)
        return min(self._settings.chunk_items, math.ceil(_CHUNK_S / item_s) if item_s > 0 else share)

    def _enqueue(self, chunk: Chunk, *, first: bool = False) -> None:
        self._queued_items += len(chunk.positions)
        (self._queue.appendleft if first else self._queue.append)(chunk)

    def _pump(self) -> None:
        """Gives waiting chunks to idle workers, and sees to it that there are enough workers."""
        while self._queue and self._idle:
            chunk = self._queue.popleft()
            self._queued_items -= len(chunk.positions)
            if chunk.request.abandoned:
                continue
            worker = self._idle.pop()
            self._jobs[worker] = (chunk, time.monotonic())
            worker.send(chunk.job())
        if self._jobs and self._watching is None and not self._closing:
            self._watching = asyncio.get_running_loop().call_later(_WATCH_S, self._watch)
        self._grow()

    def _grow(self) -> None:
        if self._closing:
            return
        missing = self._settings.num_workers - self._num_active() - self._starting
        room = self._settings.max_workers - len(self._workers) - self._starting
        for _ in range(min(missing, room)):
            self._starting += 1
            self._run(self._start_one())

    async def _start_one(self) -> None:
        if self._failed_starts:
            await asyncio.sleep(min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0**self._failed_starts))
        try:
            worker = await self._factory.start(self._on_ready, self._on_batch, self._on_end)
        except Exception as error:  # whatever it is, the next try may do better, and requests must not wait for ever
            self._failed_starts += 1
            logger.error("a worker did not start: %s: %s", type(error).__name__, error)
        else:
            self._workers.add(worker)
            if self._closing:
                worker.kill()
        finally:
            self._starting -= 1
        if self._failed_starts:
            self._grow()

    def _num_active(self) -> int:
        """Workers that stay and are not held up."""
        return len(self._workers) - len(self._leaving) - len(self._stuck)

    def _on_ready(self, worker: WorkerProcess) -> None:
        self._failed_starts = 0
        worker.was_ready = True
        self._idle.append(worker)
        self._pump()
        self._trim()

    def _on_batch(self, worker: WorkerProcess, batch: Batch) -> None:
        if worker not in self._jobs or worker in self._ends:
            return  # it was killed while this was on its way; the items are scored again
        chunk, since = self._jobs[worker]
        if len(batch.items) > len(chunk.positions) or any(
            n != len(chunk.request.specs) for n in {len(item.scores) for item in batch.items}
        ):
            worker.kill()
            return
        self.statistics.add(batch.stats)
        chunk.take(batch.items)
        if batch.leaving:
            self._end(worker, End(batch.leaving))  # the rest of its chunk comes back with its end
            return
        if not chunk.positions:
            del self._jobs[worker]
            self._stuck.discard(worker)
            self._put_back(worker)
            self._pump()
        else:
            self._jobs[worker] = (chunk, since)

    def _put_back(self, worker: WorkerProcess) -> None:
        """Keeps a worker that has done its job, unless it has done enough or was demoted."""
        if worker.demoted or worker.num_items >= self._settings.max_items_per_worker:
            if not worker.demoted:
                self.statistics.ended("recycled")
            self._let_go(worker)
            return
        self._idle.append(worker)
        self._trim()

    def _trim(self) -> None:
        """Lets workers go that are too many: those that have done least, as the others are warm. One that is not ready
        yet does not push out a warm one: it goes itself once it is."""
        starting = sum(not worker.was_ready for worker in self._workers)
        while self._idle and self._num_active() - starting > self._settings.num_workers:
            worker = min(self._idle, key=lambda one: one.num_items)
            self._idle.remove(worker)
            self._let_go(worker)

    def _let_go(self, worker: WorkerProcess) -> None:
        self._leaving.add(worker)
        worker.let_go()

    def _watch(self) -> None:
        self._watching = None
        asleep = sum(worker.idle_s > STUCK_S for worker in self._jobs)
        busy = kept_busy_by_others(len(self._workers) - asleep + _OTHER_PROCESSES)
        self._others_share += _SMOOTHING * (busy - self._others_share)
        others = self._others_share > 0.5
        waited_s = sum(worker.look(excuse=others or not worker.demoted) for worker in self._jobs)
        self._starved_s += waited_s / max(1, len(self._jobs))
        self._stuck = {one for one, (chunk, _) in self._jobs.items() if self._patience.is_stuck(one, chunk)}
        for worker, (chunk, since) in list(self._jobs.items()):
            if worker in self._ends:
                continue
            at = worker.position()
            if chunk.request.abandoned:
                self._end(worker, End("abandoned"))
            elif at is not None:
                if (end := self._patience.end(worker, chunk, at)) is not None:
                    self._end(worker, end)
                elif not others and not worker.demoted and self._patience.is_spinning(worker, chunk, at):
                    worker.demote()
            elif time.monotonic() - since - worker.excused_s > _TAKE_UP_S:
                self._end(worker, End("died"))
        if time.monotonic() >= self._next_scan and any(worker.idle_s > _SCAN_S for worker in self._jobs):
            self._next_scan = math.inf  # one at a time
            self._run(self._scan())
        self._pump()

    async def _scan(self) -> None:
        """Looks for the processes that sleeping workers wait for: they may be waiting for a processor."""
        sleeping = [worker for worker in self._jobs if worker.idle_s > _SCAN_S]
        waited_s = await asyncio.to_thread(waited_by_descendants, [worker.pid for worker in sleeping])
        more_s = [worker.excuse_children(waited_s[worker.pid]) for worker in sleeping if worker in self._jobs]
        self._starved_s += sum(more_s) / max(1, len(self._jobs))
        self._next_scan = time.monotonic() + _SCAN_S

    def _end(self, worker: WorkerProcess, end: End) -> None:
        self._ends[worker] = end
        worker.kill()

    def _on_end(self, worker: WorkerProcess) -> None:
        """Brings back what a worker left undone. Its progress is still: what it was at when it ended is known."""
        self._workers.discard(worker)
        self._leaving.discard(worker)
        self._stuck.discard(worker)
        if not worker.was_ready and not self._closing:
            self._failed_starts += 1
            logger.error("a worker ended before it was ready; its output says more")
        if worker in self._idle:
            self._idle.remove(worker)
        chunk, _ = self._jobs.pop(worker, (None, 0.0))
        self._run(self._bury(worker, chunk, self._ends.pop(worker, None)))

    async def _bury(self, worker: WorkerProcess, chunk: Chunk | None, end: End | None) -> None:
        at = worker.position()
        code = await asyncio.to_thread(worker.reap, _REAP_S)
        if chunk is not None:
            if end is None:
                end = End("died", verdict_on_death(chunk, at, code))
            elif end.verdict is not None and (at is None or at[:2] != (end.verdict.item, end.verdict.reward)):
                end = End(end.reason)  # it got past that item before the kill reached it
            self._bring_back(chunk, end)
        self._pump()

    def _bring_back(self, chunk: Chunk, end: End) -> None:
        self.statistics.ended(end.reason)
        if end.verdict is not None:
            logger.warning("lost a worker: %s: %s", chunk.describe(end.verdict), end.verdict.message)
        if chunk.request.abandoned:
            return
        chunk.request.num_kills += 1
        unknown = end.reason == "died" and end.verdict is None
        for part in chunk.apart() if unknown else chunk.split(end.verdict):
            self._enqueue(part, first=chunk.request.num_kills == 1)  # later ones let other requests go first

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
