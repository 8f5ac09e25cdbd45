"""The rollout workers together: who takes a group, who has died or hangs, and how its successor is let in. No Ray here.

A worker is watched by its heartbeat, a number that grows with every step of its engine. One that died, does not answer,
or makes no step with requests under way is given up: its groups are asked again elsewhere, its processes are ended, and
a new worker starts in its place. It takes groups when it has proved that it serves the newest adapter.

In an elastic pool a place may have no room: its node has left, or has not come yet. Those that are there go on, and a
worker starts when there is room.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from orchestration.cluster.upkeep.heartbeat import BEAT_S, until_stalled
from orchestration.cluster.upkeep.lines import LineCutError
from orchestration.cluster.upkeep.members import Place, Worker, in_turn, told
from orchestration.cluster.upkeep.restarts import Restarts
from orchestration.concurrency import before, gather_or_cancel
from orchestration.errors import RemoteTimeoutError, RlvrError, WorkerDiedError, one_line
from orchestration.run.ledger.room import when_there_is_room
from orchestration.run.ports import AdapterHandle
from orchestration.run.reporter import Note
from rollout_server.balancing import Balancer, prefix_key
from rollout_server.errors import EngineDeadError, EngineSpoiledError, GenerationError, RolloutTimeoutError
from rollout_server.types import Completion, Prompt, PublishReport, SamplingParams

Result = TypeVar("Result")

MAX_TRIES = 3
"""Of a group that an engine gives up on without dying."""
MOST_BEATS = 64
"""Workers that are looked at in each beat: hundreds take turns. One that died under a call is noticed by that."""
_LOST = (WorkerDiedError, RemoteTimeoutError, EngineDeadError, EngineSpoiledError)
"""What a call fails with when its worker is of no use any more."""


class _LostError(Exception):
    """The worker that was asked is lost."""


class RolloutPool(Generic[Worker]):
    """The `Generator` port over workers that may die at any time. Everything runs on one event loop.

    Args:
        make: Makes the worker of a place (its number), for its so-manieth life, from 1; not started yet.
        num_workers: Places.
        least: Workers that an elastic pool needs: with fewer for as long as restarts are counted it gives up. None:
            all.
        has_room: Whether there is room for the worker of a place now; None: always.
        stall_timeout_s: How long a worker may be silent, or make no step with work under way.
        new_restarts: Makes the budget of one place.
        retry_io_s: How long a publish waits for room on a worker's node.
        max_num_seqs: Sequences that a worker computes at once; None: any number.
        note: Told what happens.
        counts: Counts groups `started`, `finished`, `asked_again` and `lost`.
    """

    def __init__(
        self,
        make: Callable[[int, int], Worker],
        *,
        num_workers: int,
        least: int | None = None,
        has_room: Callable[[int], Awaitable[bool]] | None = None,
        stall_timeout_s: float,
        new_restarts: Callable[[], Restarts],
        retry_io_s: float = 0.0,
        max_num_seqs: int | None = None,
        note: Note = lambda level, message: None,
        counts: MutableMapping[str, int] | None = None,
        beat_s: float = BEAT_S,
    ) -> None:
        self._make, self._note = make, note
        self._counts = {} if counts is None else counts
        self.num_workers, self._new_restarts, self._max_num_seqs = num_workers, new_restarts, max_num_seqs
        self._stall_timeout_s, self._beat_s, self._retry_io_s = stall_timeout_s, beat_s, retry_io_s
        self._least, self._has_room = least, has_room
        self._too_few: asyncio.TimerHandle | None = None
        """Gives up, if there are not enough by then."""
        self._places: list[Place[Worker]] = []
        self._takers: dict[int, Place[Worker]] = {}
        self._balancer = Balancer(num_workers)
        self._adapter: AdapterHandle | None = None
        self._failure: RlvrError | None = None
        self._changed = asyncio.Event()
        self._revivals: set[asyncio.Task[None]] = set()

    @property
    def members(self) -> tuple[Worker, ...]:
        """Those that take groups."""
        return tuple(self._takers[index].member for index in sorted(self._takers))

    @property
    def max_sequences(self) -> int | None:
        """Twice what the workers compute at once: of a group all are counted until its last has ended."""
        return None if self._max_num_seqs is None else 2 * self._max_num_seqs * max(len(self._takers), 1)

    async def start(self) -> None:
        """Start all workers that there is room for; returns when each can generate. The first that cannot ends the
        start with its error. The others start when there is room."""
        self._places = [Place(index=index, restarts=self._new_restarts()) for index in range(self.num_workers)]
        with_room = [place for place in self._places if await self._room(place)]
        for place in with_room:
            self._move_in(place)
        await gather_or_cancel(place.member.start() for place in with_room)
        for place in with_room:
            self._admit(place)
        for place in self._places:
            if place not in with_room:
                self._begin(self._fill(place), f"fill-{place.index}")
        self._mind_the_least()

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        """A group from whichever worker has the least to do; if that one is lost, from another, or from its successor.

        Raises RlvrError when the workers cannot be kept alive, and what a worker raises that goes on living.
        """
        return await self.ask(prompt, sampling.num_generations, lambda member, asked: member.generate(asked, sampling))

    async def ask(
        self, prompt: Prompt, num_sequences: int, work: Callable[[Worker, Prompt], Awaitable[Result]]
    ) -> Result:
        """As `generate`: whatever `work` has a worker make of a prompt, such as a group with its scores."""
        self._count("started")
        try:
            answer = await self._answer(prompt, num_sequences, work)
        except Exception:
            self._count("lost")
            raise
        self._count("finished")
        return answer

    def _count(self, what: str) -> None:
        self._counts[what] = self._counts.get(what, 0) + 1

    async def _answer(
        self, prompt: Prompt, num_sequences: int, work: Callable[[Worker, Prompt], Awaitable[Result]]
    ) -> Result:
        tries = 0
        prefix = prefix_key(prompt.token_ids) if prompt.affinity is None else prompt.affinity
        while True:
            await self._admitted()
            asked, among = in_turn(prompt, self._takers.keys(), self.num_workers)
            prompt = replace(prompt, turn=None)  # asked again, it begins alone
            index = self._balancer.begin(
                prefix=prefix, num_sequences=num_sequences, among=among, stay=prompt.affinity is not None
            )
            place = self._places[index]
            try:
                return await self._ask(place, self._work(place, work(place.member, asked)))
            except (_LostError, LineCutError):
                pass
            except GenerationError:
                tries += 1
                if tries == MAX_TRIES:
                    raise
            finally:
                self._balancer.end(index, num_sequences=num_sequences)
            self._count("asked_again")

    async def publish(self, adapter: AdapterHandle) -> Sequence[PublishReport]:
        """Give an adapter to all workers. Who is lost on the way gets it later, before it takes groups again.

        Returns:
            The reports of those that serve it now, at least one.

        Raises:
            RolloutError: A worker does not serve what was trained.
            RlvrError: The workers cannot be kept alive.
        """
        self._adapter = adapter
        places = await self._admitted()
        reports = await gather_or_cancel(self._publish_to(place, adapter) for place in places)
        served = [report for report in reports if report is not None]
        while not served:
            served = [place.report for place in await self._admitted() if place.report is not None]
        return served

    def fail(self, error: RlvrError) -> None:
        """Give up: every call under way, and every later one, raises `error`."""
        if self._failure is None:
            self._failure = error
            self._takers.clear()
            for place in self._places:
                if not place.lost.done():
                    place.lost.set_result(None)
            for revival in self._revivals:
                if revival is not asyncio.current_task():
                    revival.cancel()
            self._changed.set()

    async def close(self) -> None:
        """Watch and replace no longer. The workers themselves are left as they are."""
        if self._too_few is not None:
            self._too_few.cancel()
        tasks = [*self._revivals, *(place.watch for place in self._places if place.watch is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _admitted(self) -> list[Place[Worker]]:
        """Who takes groups; waits until there is somebody."""
        while True:
            if self._failure is not None:
                raise self._failure
            if self._takers:
                return list(self._takers.values())
            self._changed.clear()
            await self._changed.wait()

    async def _publish_to(self, place: Place[Worker], adapter: AdapterHandle) -> PublishReport | None:
        try:
            place.report = await self._ask(place, self._placed(place, adapter), lost=(*_LOST, RolloutTimeoutError))
        except _LostError:
            return None
        return place.report

    async def _placed(self, place: Place[Worker], adapter: AdapterHandle) -> PublishReport:
        """Publish to one worker, on whose node there may be no room for a while."""
        member = place.member
        return await when_there_is_room(
            lambda: self._work(place, member.publish(adapter)),
            retry_io_s=self._retry_io_s,
            note=self._note,
            poll_s=2 * self._beat_s,
        )

    @staticmethod
    async def _work(place: Place[Worker], work: Awaitable[Result]) -> Result:
        """Something that the engine has to make steps for."""
        member = place.member
        place.under_way += 1
        try:
            return await work
        finally:
            if place.member is member:
                place.under_way -= 1

    async def _ask(
        self, place: Place[Worker], work: Awaitable[Result], lost: tuple[type[Exception], ...] = _LOST
    ) -> Result:
        """A worker's answer. Raises _LostError as soon as it is known to be lost.

        Args:
            lost: Errors that give the worker up.
        """
        member, gone = place.member, place.lost
        try:
            answer = await before(gone, work)
        except lost as error:
            self._lose(place, member, told(member, error))
            raise _LostError from error
        if answer is None:
            raise _LostError
        return answer[0]

    def _admit(self, place: Place[Worker]) -> None:
        self._takers[place.index] = place
        self._mind_the_least()
        place.watch = asyncio.create_task(self._watch(place, place.member), name=f"watch-{place.index}")
        self._changed.set()

    def _lose(self, place: Place[Worker], member: Worker, why: str) -> None:
        """Give a worker up; whoever finds out first has it replaced."""
        if place.tenant is not member or place.index not in self._takers or self._failure is not None:
            return
        del self._takers[place.index]
        place.lost.set_result(None)
        if place.watch is not None and place.watch is not asyncio.current_task():
            place.watch.cancel()
        self._mind_the_least()
        self._begin(self._replace(place, why), f"replace-{place.index}")

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._revivals.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A place that nobody fills any more would be missed by nobody: what ends its filling ends the run."""
        self._revivals.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error if isinstance(error, RlvrError) else WorkerDiedError(f"{task.get_name()}: {error!r}"))

    async def _replace(self, place: Place[Worker], why: str) -> None:
        """Start new workers in a place until one serves the newest adapter, or the budget is spent. That a node has
        left is no failure of theirs."""
        began = time.monotonic()
        self._note("warning", f"{one_line(why, 1000)}; it is replaced, and its groups are asked again")
        await place.member.end()
        if not await self._room(place) or await self._booked(place, why):
            await self._fill(place, began)

    async def _fill(self, place: Place[Worker], began: float | None = None) -> None:
        """The same for a place that is empty, as soon as there is room; `began` where somebody was there before."""
        if not await self._room(place):
            await self._wait_for_room(place)
            began = None
        try:
            report = await self._new_member(place)
        except Exception as error:
            await self._replace(place, f"{place.member.name} did not start: {one_line(error, 1000)}")
            return
        version = "" if report is None else f", with adapter version {report.version.number}"
        back = "has joined" if began is None else f"is back after {time.monotonic() - began:.0f} s"
        self._note("info", f"{place.member.name} {back}{version}")

    async def _booked(self, place: Place[Worker], why: str) -> bool:
        """Count a restart; whether the place may be filled again. Where enough others are there it may, but later."""
        try:
            place.restarts.book(why)
        except WorkerDiedError as error:
            if self._least is None or len(self._takers) < self._least:
                self.fail(error)
                return False
            later_s = place.restarts.window_s
            self._note("warning", f"{error}; {len(self._takers)} workers go on, and it is tried again in {later_s:g} s")
            await asyncio.sleep(later_s)
        return True

    async def _new_member(self, place: Place[Worker]) -> PublishReport | None:
        """A worker that serves the newest adapter. Raises WorkerDiedError when its node leaves meanwhile."""
        self._move_in(place)
        left = asyncio.create_task(self._until_room(place, False))
        try:
            if await before(left, self._brought_up(place)) is None:
                raise WorkerDiedError("its node has left")
        finally:
            left.cancel()
        return place.report

    def _move_in(self, place: Place[Worker]) -> None:
        place.life += 1
        place.tenant, place.report, place.under_way = self._make(place.index, place.life), None, 0
        place.lost = asyncio.get_running_loop().create_future()

    async def _brought_up(self, place: Place[Worker]) -> None:
        """It is let in at once when it has the newest adapter: were anything awaited in between, another might be
        published to those that are in, and not to it."""
        await place.member.start()
        served = None
        while served is not self._adapter:  # another may be published meanwhile
            served = self._adapter
            assert served is not None
            place.report = await self._placed(place, served)
        if self._failure is None:
            self._admit(place)

    async def _wait_for_room(self, place: Place[Worker]) -> None:
        if place.life:
            count = len(self._takers)
            self._note("warning", f"no node has room for rollout worker {place.index}; {count} go on until one has")
        await self._until_room(place, True)

    async def _until_room(self, place: Place[Worker], there: bool) -> None:
        """Returns when there is room, or none any more."""
        while await self._room(place) is not there:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(self._beat_s)

    async def _room(self, place: Place[Worker]) -> bool:
        return self._has_room is None or await self._has_room(place.index)

    def _mind_the_least(self) -> None:
        """An elastic pool with too few workers has as long as restarts are counted to be enough again."""
        if self._least is None or self._failure is not None:
            return
        if len(self._takers) >= self._least:
            if self._too_few is not None:
                self._too_few.cancel()
                self._too_few = None
        elif self._too_few is None:
            patience_s = self._new_restarts().window_s
            self._too_few = asyncio.get_running_loop().call_later(patience_s, self._give_up, patience_s)

    def _give_up(self, patience_s: float) -> None:
        self.fail(
            WorkerDiedError(
                f"{len(self._takers)} rollout workers, and not the rollout.min_workers={self._least}, for "
                f"restart_window_s={patience_s:g} s: no node has room for more; the same run_dir goes on when one has"
            )
        )

    async def _watch(self, place: Place[Worker], member: Worker) -> None:
        """Gives the worker up when it is silent, or makes no step with work under way, for `stall_timeout_s`."""
        try:
            stalled = await until_stalled(
                member.heartbeat,
                lambda: place.under_way > 0,
                stall_timeout_s=self._stall_timeout_s,
                beat_s=self._beat_s * max(1.0, self.num_workers / MOST_BEATS),
            )
        except Exception as error:
            self._lose(place, member, told(member, error))
        else:
            self._lose(place, member, f"{member.name} {stalled}")
