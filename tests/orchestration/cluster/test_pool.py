"""Workers that die, hang and come back: no group is lost or given twice. Scripted workers stand in for Ray's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from orchestration.cluster.upkeep.pool import RolloutPool
from orchestration.cluster.upkeep.restarts import Restarts
from orchestration.errors import NoRoomError, WorkerDiedError
from orchestration.run.ports import AdapterHandle
from rollout_server.errors import AdapterMismatchError, EngineDeadError, EngineStartError, GenerationError
from rollout_server.types import AdapterVersion, Completion, FinishReason, Prompt, PublishReport, SamplingParams, Turn
from tests.orchestration.fakes import FakeAdapter
from tests.waiting import others_run, until_async

SAMPLING = SamplingParams(num_generations=1)


def prompt(name: str) -> Prompt:
    return Prompt(prompt_id=name, token_ids=(1,))


class ScriptedMember:
    """Answers when its gate is open, with its own name as the text; beats while it is not stopped."""

    def __init__(self, index: int, life: int) -> None:
        self.name = f"rollout-{index}.{life}"
        self.gate = asyncio.Event()
        self.gate.set()
        self.dead: Exception | None = None
        self.start_failure: Exception | None = None
        self.publish_failure: Exception | None = None
        self.stopped = asyncio.Event()
        self.stuck = False
        self.gives_up = False
        self.ended = False
        self.asked: list[str] = []
        self.turns: list[Turn | None] = []
        self.versions: list[int] = []
        self.num_publishes = 0
        self.on_publish: Callable[[], None] = lambda: None
        self.on_published: Callable[[], object] = lambda: None
        self._beats = 0

    def die(self, error: Exception | None = None) -> None:
        self.dead = error or WorkerDiedError(f"{self.name} died")

    async def start(self) -> None:
        if self.start_failure is not None:
            raise self.start_failure

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        self.asked.append(prompt.prompt_id)
        self.turns.append(prompt.turn)
        waiting = asyncio.create_task(self.gate.wait())
        while not waiting.done():
            self._raise_if_dead()
            await asyncio.sleep(0.001)
        self._raise_if_dead()
        if self.gives_up:
            raise GenerationError("aborted")
        return [
            Completion(
                prompt_id=prompt.prompt_id,
                token_ids=(1,),
                sampling_logprobs=(-1.0,),
                text=self.name,
                finish_reason=FinishReason.STOP,
                adapter_version=self.versions[-1] if self.versions else 0,
            )
        ]

    async def publish(self, adapter: AdapterHandle) -> PublishReport:
        assert isinstance(adapter, FakeAdapter)
        self.on_publish()
        self.num_publishes += 1
        await self.gate.wait()
        self._raise_if_dead()
        if self.publish_failure is not None:
            raise self.publish_failure
        self.versions.append(adapter.version)
        self.on_published()
        version = AdapterVersion(number=adapter.version, path="", key="", num_bytes=0)
        return PublishReport(
            worker=self.name, version=version, write_ms=0, load_ms=0, probe_ms=0, probe_difference=None
        )

    async def heartbeat(self) -> int:
        if self.stopped.is_set():
            await asyncio.Event().wait()
        self._raise_if_dead()
        self._beats += not self.stuck
        return self._beats

    async def end(self) -> None:
        self.ended = True

    def _raise_if_dead(self) -> None:
        if self.dead is not None:
            raise self.dead


class Crew:
    """Every worker there ever was, by place, first life first."""

    def __init__(self) -> None:
        self.lives: dict[int, list[ScriptedMember]] = {}
        self.prepare: Callable[[ScriptedMember], None] = lambda member: None
        self.notes: list[str] = []
        self.room_failure: Exception | None = None
        self.rooms: set[int] = set()
        """Places that an elastic pool has room for."""

    async def has_room(self, index: int) -> bool:
        if self.room_failure is not None:
            raise self.room_failure
        return index in self.rooms

    def make(self, index: int, life: int) -> ScriptedMember:
        member = ScriptedMember(index, life)
        self.lives.setdefault(index, []).append(member)
        assert len(self.lives[index]) == life
        self.prepare(member)
        return member

    def newest(self, index: int) -> ScriptedMember:
        return self.lives[index][-1]


Pool = RolloutPool[ScriptedMember]


@asynccontextmanager
async def running(
    num_workers: int,
    *,
    limit: int = 5,
    stall_s: float = 60.0,
    window_s: float = 3600,
    least: int | None = None,
    rooms: Sequence[int] = (),
) -> AsyncIterator[tuple[Pool, Crew]]:
    """A pool that has been started; an elastic one where `least` is set, with these places at first."""
    crew = Crew()
    crew.rooms.update(rooms)
    pool = RolloutPool(
        crew.make,
        num_workers=num_workers,
        least=least,
        has_room=None if least is None else crew.has_room,
        stall_timeout_s=stall_s,
        new_restarts=lambda: Restarts(limit=limit, window_s=window_s),
        note=lambda level, message: crew.notes.append(message),
        retry_io_s=60.0,
        beat_s=0.005,
    )
    try:
        await pool.start()
        yield pool, crew
    finally:
        await pool.close()


async def begin(pool: Pool, *names: str) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(pool.generate(prompt(name), SAMPLING)) for name in names]
    await others_run()
    return tasks


async def test_the_groups_of_one_that_died_are_asked_again_elsewhere_and_each_is_given_once() -> None:
    async with running(2) as (pool, crew):
        for index in (0, 1):
            crew.newest(index).gate.clear()
        tasks = await begin(pool, "a", "b", "c", "d")
        await until_async(lambda: len(crew.newest(0).asked) == len(crew.newest(1).asked) == 2)
        lost = list(crew.newest(0).asked)
        crew.newest(0).die()
        crew.newest(1).gate.set()
        answers = await asyncio.gather(*tasks)
        assert sorted(answer[0].prompt_id for answer in answers) == ["a", "b", "c", "d"]
        assert all(len(answer) == 1 for answer in answers)
        asked_again = [name for lives in crew.lives.values() for member in lives[1:] for name in member.asked]
        assert sorted(crew.lives[1][0].asked + asked_again) == ["a", "b", "c", "d"]
        assert set(lost) <= set(crew.lives[1][0].asked + asked_again)
        await until_async(lambda: len(pool.members) == 2)
        assert crew.lives[0][0].ended
        assert not crew.lives[1][0].ended
        assert "rollout-0.1 died; it is replaced" in crew.notes[0]


async def test_a_turn_goes_to_the_same_workers_in_every_start_and_is_over_for_who_is_asked_again() -> None:
    turns = [Turn(key="k", index=index, size=4) for index in range(4)]
    async with running(2) as (pool, crew):
        crew.newest(0).gate.clear()
        prompts = [replace(prompt(str(index)), turn=turns[index]) for index in (3, 0, 2, 1)]
        tasks = [asyncio.create_task(pool.generate(one, SAMPLING)) for one in prompts]
        await until_async(lambda: len(crew.newest(0).asked) == len(crew.newest(1).asked) == 2)
        first, second = crew.newest(0), crew.newest(1)
        assert (first.asked, second.asked) == (["0", "2"], ["3", "1"])
        places = [(turn.index, turn.size) for turn in first.turns + second.turns if turn is not None]
        assert places == [(0, 2), (1, 2), (1, 2), (0, 2)]
        first.die()
        await asyncio.gather(*tasks)
        again = [turn for life in (*crew.lives[0][1:], second) for turn in life.turns]
        assert again.count(None) == 2


async def test_with_one_worker_the_group_waits_for_the_next() -> None:
    async with running(1) as (pool, crew):
        crew.newest(0).die()
        (answer,) = await pool.generate(prompt("a"), SAMPLING)
        assert answer.text == "rollout-0.2"


async def test_an_idle_worker_that_died_is_noticed_and_replaced() -> None:
    async with running(1) as (_, crew):
        crew.newest(0).die(EngineDeadError("the engine core was killed by SIGKILL"))
        await until_async(lambda: len(crew.lives[0]) == 2)


@pytest.mark.parametrize("way", ["silent", "no step"])
async def test_one_that_hangs_is_ended_and_its_groups_go_elsewhere(way: str) -> None:
    async with running(2, stall_s=0.05) as (pool, crew):
        hung = crew.newest(0)
        hung.gate.clear()
        tasks = await begin(pool, "a", "b")
        if way == "silent":
            hung.stopped.set()
        else:
            hung.stuck = True
        answers = await asyncio.gather(*tasks)
        assert [answer[0].text.split(".")[0] for answer in answers].count("rollout-1") >= 1
        assert hung.ended
        assert not crew.lives[1][0].ended


async def test_one_without_work_need_not_make_steps() -> None:
    async with running(1, stall_s=0.03) as (pool, crew):
        crew.newest(0).stuck = True
        looks = crew.newest(0)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert len(crew.lives[0]) == 1
        assert pool.members == (looks,)


async def test_a_publish_goes_on_with_the_others_and_who_comes_back_serves_it() -> None:
    async with running(2) as (pool, crew):
        crew.newest(0).die()
        (report,) = await pool.publish(FakeAdapter(1))
        assert report.worker == "rollout-1.1"
        await until_async(lambda: len(pool.members) == 2)
        assert crew.newest(0).versions == [1]
        assert "rollout-0.2 is back" in crew.notes[-1]
        assert "adapter version 1" in crew.notes[-1]


async def test_one_that_hangs_in_a_publish_is_replaced() -> None:
    async with running(2, stall_s=0.05) as (pool, crew):
        crew.newest(0).gate.clear()
        crew.newest(0).stuck = True
        reports = await pool.publish(FakeAdapter(1))
        assert [report.worker for report in reports] == ["rollout-1.1"]


async def test_with_one_worker_a_publish_waits_for_the_next_which_must_have_the_adapter() -> None:
    async with running(1) as (pool, crew):
        crew.newest(0).die()
        (report,) = await pool.publish(FakeAdapter(1))
        assert (report.worker, report.version.number) == ("rollout-0.2", 1)
        assert crew.newest(0).versions == [1]


async def test_a_version_published_while_one_is_let_in_reaches_it_first() -> None:
    async with running(2) as (pool, crew):
        await pool.publish(FakeAdapter(1))
        reached = asyncio.Event()

        def publishes_slowly(member: ScriptedMember) -> None:
            member.gate.clear()
            member.on_publish = reached.set

        crew.prepare = publishes_slowly
        crew.newest(0).die()
        await asyncio.wait_for(reached.wait(), 10)
        await pool.publish(FakeAdapter(2))
        crew.newest(0).gate.set()
        await until_async(lambda: len(pool.members) == 2)
        assert crew.newest(0).versions == [1, 2]


async def test_a_version_published_just_as_one_is_let_in_reaches_it_too() -> None:
    async with running(2) as (pool, crew):
        await pool.publish(FakeAdapter(1))
        publishes = list[asyncio.Task[Any]]()

        def published_next() -> None:
            if not publishes:
                publishes.append(asyncio.create_task(pool.publish(FakeAdapter(2))))

        def is_let_in(member: ScriptedMember) -> None:
            crew.prepare = lambda member: None
            member.on_published = lambda: asyncio.get_running_loop().call_soon(published_next)

        crew.prepare = is_let_in
        crew.newest(0).die()
        await until_async(lambda: publishes and publishes[0].done())
        assert [member.versions[-1] for member in pool.members] == [2, 2]


async def test_what_ends_the_filling_of_a_place_ends_the_run() -> None:
    async with running(2, least=1, rooms=[0]) as (pool, crew):
        crew.room_failure = OSError("Ray says nothing")
        crew.newest(0).gate.clear()
        (waiting,) = await begin(pool, "a")
        with pytest.raises(WorkerDiedError, match=r"fill-1: OSError\('Ray says nothing'\)"):
            await waiting


async def test_what_is_not_served_as_trained_ends_the_publish() -> None:
    async with running(2) as (pool, crew):
        crew.newest(1).publish_failure = AdapterMismatchError("not what was trained")
        with pytest.raises(AdapterMismatchError):
            await pool.publish(FakeAdapter(1))


async def test_a_publish_waits_for_room_on_the_node_and_says_so_once() -> None:
    async with running(2) as (pool, crew):
        crew.newest(1).publish_failure = NoRoomError(
            "rollout-1.1 could not publish: /dev/shm/x: No space left on device"
        )
        waiting = asyncio.create_task(pool.publish(FakeAdapter(1)))
        await until_async(lambda: crew.newest(1).num_publishes > 2)
        assert [note for note in crew.notes if "No space left" in note] == [
            "rollout-1.1 could not publish: /dev/shm/x: No space left on device; it is tried again for retry_io_s=60 s"
        ]
        crew.newest(1).publish_failure = None
        assert len(await waiting) == 2
        assert crew.notes[-1] == "there is room again"
        assert len(crew.lives[1]) == 1


async def test_past_the_budget_everything_ends_with_the_whole_story() -> None:
    async with running(2, limit=2) as (pool, crew):
        crew.newest(1).gate.clear()

        def fails_to_start(member: ScriptedMember) -> None:
            member.start_failure = EngineStartError("no memory")

        crew.prepare = fails_to_start
        tasks = await begin(pool, "a", "b")
        crew.newest(0).die()
        with pytest.raises(WorkerDiedError, match=r"3 failures within 3600 s.*max_restarts=2") as raised:
            await asyncio.gather(*tasks)
        assert "(1) 0 s ago: rollout-0.1 died; (2) 0 s ago: rollout-0.2 did not start: no memory" in str(raised.value)
        for call in (pool.generate(prompt("c"), SAMPLING), pool.publish(FakeAdapter(1))):
            with pytest.raises(WorkerDiedError, match="max_restarts"):
                await call
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_workers_join_where_a_node_has_room_and_leave_with_it() -> None:
    """That a node leaves is no restart: none is allowed here."""
    async with running(3, limit=0, least=1, rooms=[0]) as (pool, crew):
        await pool.publish(FakeAdapter(1))
        assert [member.name for member in pool.members] == ["rollout-0.1"]
        assert pool.max_sequences is None
        crew.rooms.update([1, 2])
        await until_async(lambda: len(pool.members) == 3)
        assert {crew.newest(index).versions[-1] for index in range(3)} == {1}
        assert sum("has joined, with adapter version 1" in note for note in crew.notes) == 2
        crew.newest(2).gate.clear()
        tasks = await begin(pool, "a", "b", "c")
        await until_async(lambda: crew.newest(2).asked)
        crew.rooms.remove(2)
        crew.newest(2).die()
        answers = await asyncio.gather(*tasks)
        assert sorted(answer[0].prompt_id for answer in answers) == ["a", "b", "c"]
        await until_async(lambda: "no node has room for rollout worker 2; 2 go on until one has" in crew.notes)
        assert crew.newest(2).ended
        await pool.publish(FakeAdapter(2))
        crew.rooms.add(2)
        await until_async(lambda: len(pool.members) == 3)
        assert crew.newest(2).versions == [2]


async def test_a_node_that_leaves_while_a_worker_starts_there_is_waited_for() -> None:
    async with running(2, limit=0, least=1, rooms=[0]) as (pool, crew):
        await pool.publish(FakeAdapter(1))
        crew.prepare = lambda member: member.gate.clear()
        crew.rooms.add(1)
        await until_async(lambda: crew.lives.get(1) and crew.newest(1).num_publishes)
        crew.rooms.remove(1)
        await until_async(lambda: crew.newest(1).ended)
        crew.prepare = lambda member: None
        crew.rooms.add(1)
        await until_async(lambda: len(pool.members) == 2)
        assert len(crew.lives[1]) == 2


async def test_a_place_whose_workers_fail_is_left_empty_where_enough_others_are_there() -> None:
    async with running(2, limit=1, least=1, rooms=[0, 1]) as (pool, crew):

        def fails_to_start(member: ScriptedMember) -> None:
            member.start_failure = EngineStartError("no memory")

        crew.prepare = fails_to_start
        crew.newest(1).die()
        await until_async(lambda: "1 workers go on, and it is tried again in 3600 s" in " ".join(crew.notes))
        assert await pool.generate(prompt("a"), SAMPLING)


async def test_too_few_for_too_long_end_the_run() -> None:
    async with running(2, least=2, rooms=[0, 1], window_s=0.1) as (pool, crew):
        crew.rooms.remove(1)
        crew.newest(1).die()
        crew.newest(0).gate.clear()
        (waiting,) = await begin(pool, "a")
        with pytest.raises(WorkerDiedError, match=r"1 rollout workers, and not the rollout.min_workers=2, for "):
            await waiting


async def test_a_group_that_an_engine_gives_up_on_is_tried_three_times() -> None:
    async with running(1) as (pool, crew):
        member = crew.newest(0)
        member.gives_up = True
        with pytest.raises(GenerationError):
            await pool.generate(prompt("a"), SAMPLING)
        assert len(member.asked) == 3


async def test_a_start_that_fails_is_raised_and_not_tried_again() -> None:
    crew = Crew()

    def fails_to_start(member: ScriptedMember) -> None:
        member.start_failure = EngineStartError("no such model")

    crew.prepare = fails_to_start
    pool = RolloutPool(
        crew.make, num_workers=1, stall_timeout_s=60, new_restarts=lambda: Restarts(limit=5, window_s=60)
    )
    with pytest.raises(EngineStartError):
        await pool.start()


def test_what_happened_long_ago_is_not_counted() -> None:
    now = [0.0]
    restarts = Restarts(limit=1, window_s=10, clock=lambda: now[0])
    for at in (0.0, 11.0, 22.0):
        now[0] = at
        restarts.book(f"at {at}")
    now[0] = 23.0
    with pytest.raises(WorkerDiedError, match=r"^2 failures within 10 s .*\(1\) 1 s ago: at 22.0; \(2\) 0 s ago: a"):
        restarts.book("again")
