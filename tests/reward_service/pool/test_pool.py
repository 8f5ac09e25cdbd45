"""The pool against rewards that hang, die and eat memory: what it costs, and whom."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from reward_service.errors import QueueFullError, ShuttingDownError
from reward_service.pool.messages import ScoredItem
from reward_service.pool.pool import WorkerPool
from reward_service.pool.process import WorkerProcess
from reward_service.pool.request import Chunk, PoolRequest, Verdict
from reward_service.registry import BUILTIN_REWARDS, is_light
from reward_service.schemas import ScoreItem
from reward_service.scoring import make_plan
from reward_service.settings import CustomRewardSpec, ServiceSettings
from reward_service.types import RewardSpec
from tests.reward_service.cases.test_cases import FILES, read_cases
from tests.waiting import until_async

NAMES = ("fails", "hangs", "dies", "tells", "cold")
DEADLINE_S = 0.5


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[WorkerPool]:
    custom = tuple(CustomRewardSpec(name=name, target=f"tests.reward_service.pool.hostile:{name}") for name in NAMES)
    given = {"custom_rewards": custom, "rewards": ("gsm8k_format", *NAMES), "num_workers": 2, "deadline_s": DEADLINE_S}
    pool = WorkerPool(ServiceSettings(**(given | settings)), ())
    await pool.start()
    try:
        await until_async(lambda: pool.ready)
        yield pool
    finally:
        await pool.close()


async def score(
    pool: WorkerPool, completions: Sequence[str], *rewards: str, deadline_s: float = DEADLINE_S
) -> Sequence[ScoredItem]:
    specs = tuple(RewardSpec(name=name) for name in rewards)
    items = [ScoreItem(completion, id=str(index)) for index, completion in enumerate(completions)]
    answers = await pool.score(specs, [deadline_s] * len(specs), items)
    assert [msgspec.json.decode(answer.result)["id"] for answer in answers] == [item.id for item in items]
    return answers


def reasons(item: ScoredItem) -> dict[str, str | None]:
    return {name: score["reason"] for name, score in msgspec.json.decode(item.result)["rewards"].items()}


def message(item: ScoredItem, name: str) -> str:
    return str(msgspec.json.decode(item.result)["rewards"][name]["details"]["message"])


@pytest.mark.parametrize("how", ["sleeps", "spins", "holds", "deaf"])
async def test_an_item_that_hangs_costs_its_deadline_and_nothing_else(how: str) -> None:
    async with running() as pool:
        began = time.monotonic()
        answers = await score(pool, ["a", how, *"bcdef"], "gsm8k_format", "hangs", "fails")
        took = time.monotonic() - began
        assert [item.scores for item in answers] == [
            [0.0, None if index == 1 else 1.0, 1.0] for index in range(7)
        ]  # its other rewards have their scores
        assert reasons(answers[1]) == {"gsm8k_format": None, "hangs": "timeout", "fails": None}
        assert "0.5 s" in message(answers[1], "hangs")
        assert took >= DEADLINE_S  # and longer where others have the processors: that time does not count
        assert pool.statistics.restarts == {"timeout": 1}


async def test_many_that_hang_hold_nobody_else_up_for_long() -> None:
    async with running(max_workers=6) as pool:
        hostile = asyncio.create_task(score(pool, ["spins"] * 6, "hangs", deadline_s=1.0))
        await until_async(lambda: len(pool._jobs) == 2)
        began = time.monotonic()
        assert all(item.total == 0.0 for item in await score(pool, ["x"] * 20, "gsm8k_format"))
        waited = time.monotonic() - began
        assert waited < 2.0 or not hostile.done()  # two workers would need three deadlines before they came to these
        assert [item.scores for item in await hostile] == [[None]] * 6


@pytest.mark.parametrize(
    ("how", "said"), [("segfaults", "signal 11"), ("exits", "exit code 3"), ("killed", "signal 9")]
)
async def test_an_item_that_kills_its_worker_has_no_score(how: str, said: str) -> None:
    async with running() as pool:
        answers = await score(pool, ["a", how, "b", "c"], "dies", "gsm8k_format")
        assert [item.scores[0] for item in answers] == [1.0, None, 1.0, 1.0]
        assert [item.scores[1] for item in answers] == [0.0] * 4
        assert reasons(answers[1])["dies"] == "verifier_error"
        assert said in message(answers[1], "dies")
        assert pool.statistics.restarts["died"] == 2  # the second time it was alone: it was that item


async def test_an_item_that_spoils_its_worker_is_found() -> None:
    """It closes the worker's socket: the worker dies when it wants to send what it has, of all items."""
    async with running() as pool:
        answers = await score(pool, ["a", "shuts", "b", "c"], "dies", "gsm8k_format")
        assert [item.scores[0] for item in answers] == [1.0, None, 1.0, 1.0]
        assert reasons(answers[1])["dies"] == "verifier_error"


async def test_what_the_server_scores_itself_is_what_workers_say() -> None:
    light = [name for name, reward in BUILTIN_REWARDS.items() if is_light(reward, reward.params.model_construct())]
    asked: dict[bytes, tuple[RewardSpec, list[ScoreItem]]] = {}
    for case in (case for path in FILES if path.stem in light for case in read_cases(path)):
        spec = RewardSpec(name=case["reward"], params=case.get("parameters", {}))
        item = ScoreItem(case["completion"], reference=case["reference"], id=f"{case['why']}", metadata={"n": 2**70})
        asked.setdefault(msgspec.json.encode(spec), (spec, []))[1].append(item)
    async with running(rewards=tuple(light), custom_rewards=()) as pool:
        for spec, items in asked.values():
            both = [*items, ScoreItem("5", id="no reference")]
            by_workers = await pool.score((spec,), [DEADLINE_S], both)
            counted = pool.statistics.of(spec.name)
            num_items, num_nulls = sum(counted.buckets), sum(counted.reasons.values())
            assert list(pool.score_here(make_plan([spec], BUILTIN_REWARDS), both)) == list(by_workers)
            assert sum(counted.buckets) - num_items == len(both)
            assert sum(counted.reasons.values()) - num_nulls == sum(item.total is None for item in by_workers)
        assert {spec.name for spec, _ in asked.values()} == set(light)


async def test_an_item_that_was_there_when_a_worker_died_of_something_else_is_scored(tmp_path: Any) -> None:
    async with running() as pool:
        answers = await score(pool, ["a", f"once {tmp_path / 'died'}", "b"], "dies")
        assert [item.scores for item in answers] == [[1.0]] * 3


async def test_workers_killed_from_outside_cost_no_score() -> None:
    async with running() as pool:
        work = asyncio.create_task(score(pool, ["slow"] * 8, "hangs"))
        await until_async(lambda: len(pool._jobs) == 2)
        for worker in list(pool._jobs):
            os.kill(worker.pid, signal.SIGKILL)
        assert [item.scores for item in await work] == [[1.0]] * 8


async def test_memory_is_bounded() -> None:
    async with running(worker_memory_bytes=2**28) as pool:
        answers = await score(pool, ["a", "eats", "b"], "dies")
        assert [item.scores for item in answers] == [[1.0], [None], [1.0]]
        assert reasons(answers[1]) == {"dies": "out_of_memory"}
        await until_async(lambda: pool.statistics.restarts)
        assert pool.statistics.restarts == {"out of memory": 1}


async def test_details_that_are_not_json_are_told_of() -> None:
    async with running() as pool:
        [item] = await score(pool, ["a"], "tells")
        told = msgspec.json.decode(item.result)["rewards"]["tells"]
        assert told["score"] == 1.0
        assert told["details"]


async def test_a_worker_that_sleeps_is_replaced_and_stays_when_it_is_done() -> None:
    async with running(num_workers=1) as pool:
        await score(pool, ["x"], "hangs")
        work = asyncio.create_task(score(pool, ["slow", "slow"], "hangs"))
        await until_async(lambda: pool._stuck)
        [held_up] = pool._stuck
        await until_async(lambda: pool.num_workers == 2)  # another took its place
        assert [item.scores for item in await work] == [[1.0]] * 2
        await until_async(lambda: pool.num_workers == 1)
        assert pool._workers == {held_up}  # it has done more than the other
        assert os.getpriority(os.PRIO_PROCESS, held_up.pid) == os.getpriority(os.PRIO_PROCESS, 0)


async def test_a_worker_that_became_warm_stays() -> None:
    """Its substitute, which is cold, would be slow at the next item, and so on: a new process for every item."""
    async with running(num_workers=1) as pool:
        answers = [(await score(pool, [f"{n}"], "cold", deadline_s=30.0))[0] for n in range(20)]
        pids = [msgspec.json.decode(one.result)["rewards"]["cold"]["details"]["pid"] for one in answers]
        assert len(set(pids)) == 1
        assert pool.statistics.restarts == {}


async def test_a_warm_worker_is_not_let_go_for_one_that_is_not_ready_yet() -> None:
    async with running(num_workers=1) as pool:
        is_ready, late = pool._on_ready, list[WorkerProcess]()
        pool._on_ready = late.append  # type: ignore[method-assign]
        [warm] = pool._workers
        await score(pool, ["7"], "cold", deadline_s=30.0)
        await until_async(lambda: late)
        assert pool._idle == [warm]
        is_ready(late[0])
        await until_async(lambda: pool._workers == {warm})


async def test_workers_are_forked_warm() -> None:
    """The first item of `math` took 0.37 s of the processor; now that is done before there is a worker."""
    math = BUILTIN_REWARDS["math"]
    settings = ServiceSettings(rewards=("math",), num_workers=1)
    pool = WorkerPool(settings, [*math.preload])
    await pool.start()
    try:
        await until_async(lambda: pool.ready)
        item = ScoreItem(r"\boxed{\frac{3}{4}}", reference={"final_answer": "3/4"})
        for _ in range(3):
            (answer,) = await pool.score((RewardSpec(name="math"),), [60.0], [item])
            assert answer.scores == [1.0]
        assert "reward_service.rewards.warm.mathematics" in math.preload
        assert len(pool._workers) == 1
    finally:
        await pool.close()


async def test_a_worker_that_spins_is_left_the_spare_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an idle machine: on a busy one it is excused, and its deadline may come before it has had its second."""
    monkeypatch.setattr("reward_service.pool.pool.kept_busy_by_others", lambda num_ours: False)
    async with running(num_workers=1) as pool:
        with monkeypatch.context() as idle:
            idle.setattr(
                WorkerProcess, "look", lambda worker, excuse, look=WorkerProcess.look: look(worker, excuse=False)
            )
            idle.setattr("reward_service.pool.patience.Patience.end", lambda *_: None)
            work = asyncio.create_task(score(pool, ["spins"], "hangs", deadline_s=4.0))
            await until_async(lambda: pool._jobs)
            [held_up] = pool._jobs
            await until_async(lambda: held_up.demoted)
            assert os.getpriority(os.PRIO_PROCESS, held_up.pid) == 19
        assert [item.scores for item in await work] == [[None]]


async def test_workers_that_cannot_start_are_tried_again_with_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text(
        "import multiprocessing, pathlib\n"
        "def score(completion, reference, params): return 1.0\n"
        "if multiprocessing.parent_process() is not None:\n"
        f"    with open({str(tmp_path / 'starts')!r}, 'a') as file: file.write('x')\n"
        "    raise ImportError('not in a worker')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    custom = (CustomRewardSpec(name="only_here", target="only_here:score"),)
    pool = WorkerPool(ServiceSettings(custom_rewards=custom, rewards=("only_here",), num_workers=1), ())
    starts, began = tmp_path / "starts", time.monotonic()
    await pool.start()
    await until_async(lambda: starts.is_file() and len(starts.read_text()) == 3)
    assert time.monotonic() - began >= 0.2 + 0.4  # so far are three starts apart
    assert not pool.ready
    await pool.close()


async def test_workers_are_recycled() -> None:
    async with running(num_workers=1, max_items_per_worker=10) as pool:
        for _ in range(5):
            await score(pool, ["x"] * 6, "gsm8k_format")
        assert pool.statistics.restarts == {"recycled": 2}


async def test_a_request_ends_at_its_own_deadline_and_lets_go() -> None:
    async with running(request_timeout_s=1.0, num_workers=1, max_workers=1) as pool:
        began = time.monotonic()
        answers = await score(pool, ["slow"] * 20, "hangs")
        assert 1.0 <= time.monotonic() - began < 15
        assert answers[0].scores == [1.0]
        assert reasons(answers[-1]) == {"hangs": "timeout"}
        assert "request_timeout_s = 1" in message(answers[-1], "hangs")
        [after] = await score(pool, ["x"], "gsm8k_format")  # nothing of it keeps the worker
        assert after.scores == [0.0]


async def test_the_queue_is_bounded() -> None:
    async with running(max_queued_items=100, num_workers=1, max_workers=1) as pool:
        first = asyncio.create_task(score(pool, ["slow", *["x"] * 300], "hangs"))  # larger than the limit, but alone
        await until_async(lambda: pool.queued_items > 100)
        with pytest.raises(QueueFullError, match="max_queued_items = 100"):
            await score(pool, ["x"], "gsm8k_format")
        assert len(await first) == 301
        assert len(await score(pool, ["x"], "gsm8k_format")) == 1


async def test_close_answers_what_waits_and_leaves_no_process() -> None:
    async with running() as pool:
        work = asyncio.create_task(score(pool, ["sleeps", "x"], "hangs"))
        await until_async(lambda: pool._jobs)
        pids = [worker.pid for worker in pool._workers]
        await pool.close()
        assert {reason for item in await work for reason in reasons(item).values()} <= {"unavailable", None}
        with pytest.raises(ShuttingDownError):
            await score(pool, ["x"], "hangs")
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)


async def test_results_are_in_order_whatever_happens_to_single_ones() -> None:
    async with running(chunk_items=7) as pool:
        completions = ["raises x" if n % 11 == 0 else f"{n}" for n in range(300)]
        completions[150] = "spins"
        both = await score(pool, completions, "fails", "hangs")
        assert [item.scores[0] for item in both] == [None if n % 11 == 0 else 1.0 for n in range(300)]
        assert [n for n, item in enumerate(both) if item.scores[1] is None] == [150]


async def test_a_chunk_is_split_around_what_held_it_up() -> None:
    future: asyncio.Future[Sequence[ScoredItem]] = asyncio.get_running_loop().create_future()
    request = PoolRequest((RewardSpec(name="a"), RewardSpec(name="b")), [1, 1], [ScoreItem("")] * 6, future)
    chunk = Chunk(request, [1, 2, 3, 4, 5])
    chunk.take([ScoredItem(1.0, [1.0, 1.0], b"{}")])  # position 1 is done; the worker's third is position 3
    parts = chunk.split(Verdict(2, 1, "timeout", "late"))
    assert [part.positions for part in parts] == [[3], [2, 4], [5]]
    assert parts[0].job().verdicts == {0: {"b": ("timeout", "late")}}
    assert parts[0].split(Verdict(0, 0, "timeout", "late too")) == []  # no reward is left to be run
    for part in (*parts[1:], Chunk(request, [0])):
        part.take([ScoredItem(1.0, [1.0, 1.0], b"{}")] * len(part.positions))
    answers = await future
    assert reasons(answers[3]) == {"a": "timeout", "b": "timeout"}
    assert message(answers[3], "a") == "late too"


async def test_importing_what_a_reward_needs_is_not_an_items_time() -> None:
    slow = CustomRewardSpec(name="slow_at_first", target="tests.reward_service.pool.hostile:SLOW_AT_FIRST")
    async with running(custom_rewards=(slow,), rewards=("slow_at_first",)) as pool:
        (item,) = await score(pool, ["a"], "slow_at_first", deadline_s=0.3)
        assert item.scores == [1.0]
        assert pool.statistics.restarts == {}
