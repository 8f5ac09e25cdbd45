"""The learner's port over its ranks: who is told what, and what happens when one dies or hangs. Scripted ranks stand in
for Ray's."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from learner.checkpoint import checkpoint_steps, write_checkpoint
from learner.errors import NonFiniteLossError
from learner.types import UpdateMetrics
from orchestration.cluster import calls
from orchestration.cluster.actors import LearnerActor
from orchestration.cluster.learner import RayLearner
from orchestration.cluster.upkeep.restarts import Restarts
from orchestration.errors import MachineError, ValueLostError, WorkerDiedError
from orchestration.settings.config import load_config
from rollout_server.types import AdapterPayload, AdapterProbe
from tests.waiting import others_run, until_async

CONFIG = load_config(
    "tiny",
    ["max_staleness=1", "learner.update_timeout_s=11", "learner.start_timeout_s=22", "learner.stall_timeout_s=0.2"],
)


class Rank:
    """Keeps what it was asked, and within how long; its policy is the list of batches it learned from."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, float, tuple[Any, ...]]] = []
        self.policy: list[Any] = []
        self.fails: dict[str, Exception] = {}
        self.hangs = False

    def call(self, method: Callable[..., Any], *, timeout_s: float) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def called(*args: Any) -> Any:
            name = method.__name__
            if name != "heartbeat":
                self.asked.append((name, timeout_s, args))
            if (error := self.fails.get(name)) is not None:
                raise error
            return await getattr(self, f"_{name}")(*args)

        return called

    async def _heartbeat(self) -> int:
        return 1

    async def _notes(self) -> tuple[str, ...]:
        return ()

    async def _update(self, batch: bytes, max_staleness: int, step: int) -> UpdateMetrics:
        if self.hangs:
            await asyncio.Event().wait()
        assert step == len(self.policy) + 1
        self.policy.append(pickle.loads(batch))
        return UpdateMetrics(step=step)

    async def _save_checkpoint(self, folder: str, files: dict[str, bytes]) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        write_checkpoint(Path(folder), len(self.policy), [("policy", repr(self.policy).encode())], keep=2)

    async def _load_checkpoint(self, folder: str) -> int:
        self.policy = eval((Path(folder) / "policy").read_text())
        return len(self.policy)


class Crew:
    """Both ranks of every life."""

    def __init__(self, *, limit: int = 5) -> None:
        self.lives: list[tuple[Rank, Rank]] = []
        self.ended: list[int] = []
        self.notes: list[str] = []
        self.learner = RayLearner(
            self._start,  # type: ignore[arg-type]
            self._end,
            CONFIG,
            restarts=Restarts(limit=limit, window_s=60),
            note=lambda level, message: self.notes.append(message),
            beat_s=0.005,
        )

    async def _start(self, life: int) -> Sequence[Rank]:
        self.lives.append((Rank(), Rank()))
        assert len(self.lives) == life
        return self.lives[-1]

    async def _end(self) -> None:
        self.ended.append(len(self.lives))

    async def update(self, batch: str) -> UpdateMetrics:
        return await self.learner.update(tuple(batch))  # type: ignore[arg-type]

    @property
    def policies(self) -> list[list[Any]]:
        return [["".join(batch) for batch in rank.policy] for rank in self.lives[-1]]


async def as_it_is(value: Any) -> Any:
    return value


@pytest.fixture
async def crew(monkeypatch: pytest.MonkeyPatch) -> Crew:
    monkeypatch.setattr("orchestration.cluster.learner.shared", as_it_is)
    crew = Crew()
    await crew.learner.start()
    return crew


async def test_calls_have_the_limits_of_the_settings(crew: Crew, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, [("policy", b"['a']")], keep=1)
    folder = str(tmp_path / "step-000001")
    assert await crew.learner.load_checkpoint(folder) == 1
    assert (await crew.update("b")).step == 2
    await crew.learner.save_checkpoint(str(tmp_path), {})
    expected = [
        ("load_checkpoint", 22.0, (folder,)),
        ("update", 11.0, (pickle.dumps(("b",), pickle.HIGHEST_PROTOCOL), 1, 2)),
        ("save_checkpoint", 11.0, (str(tmp_path), {})),
    ]
    assert [rank.asked for rank in crew.lives[0]] == [expected, expected]


async def test_a_batch_waits_for_room_in_the_object_store(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [ObjectStoreFullError("too full. Ray ..."), OutOfDiskError("so is the disk")]

    def put(value: Any) -> Any:
        if failures:
            raise failures.pop(0)
        return value

    monkeypatch.setattr(calls.ray, "put", put)
    monkeypatch.setattr("orchestration.cluster.learner.shared", calls.shared)
    monkeypatch.setattr("orchestration.run.ledger.room.POLL_S", 0.001)
    assert (await crew.update("a")).step == 1
    assert crew.policies == [["a"], ["a"]]
    assert "object store is full" in crew.notes[0]
    assert crew.notes[1:] == ["there is room again"]


@pytest.mark.parametrize("lost", [WorkerDiedError, ValueLostError])  # its answer may be gone with its node
async def test_before_the_first_checkpoint_all_is_learned_again_from_the_seed(
    crew: Crew, lost: type[WorkerDiedError]
) -> None:
    await crew.update("a")
    crew.lives[0][1].fails["update"] = lost("learner-1 died during update: by SIGKILL")
    assert (await crew.update("b")).step == 2
    assert crew.policies == [["a", "b"], ["a", "b"]]
    assert crew.ended == [1]
    assert "learner-1 died during update" in crew.notes[0]
    assert crew.notes[1].endswith("with 1 step(s) made again")


async def test_after_a_checkpoint_only_what_came_later_is_learned_again(crew: Crew, tmp_path: Path) -> None:
    for batch in "abc":
        await crew.update(batch)
        if batch == "b":
            await crew.learner.save_checkpoint(str(tmp_path), {})
    crew.lives[0][0].fails["update"] = WorkerDiedError("learner-0 died")
    assert (await crew.update("d")).step == 4
    assert crew.policies == [["a", "b", "c", "d"]] * 2
    assert [name for name, _, _ in crew.lives[1][0].asked] == ["load_checkpoint", "update", "update"]


async def test_one_that_makes_no_progress_is_started_again(crew: Crew, tmp_path: Path) -> None:
    crew.lives[0][1].hangs = True
    assert (await crew.update("a")).step == 1
    assert "the learner's update 1 made no step with work under way for 0.2 s" in crew.notes[0]
    crew.lives[1][0].hangs = True
    await crew.learner.save_checkpoint(str(tmp_path), {})
    assert "the learner's checkpoint of step 1 made no step with work under way for 0.2 s" in crew.notes[2]
    assert checkpoint_steps(tmp_path) == [1]


async def test_a_connection_that_is_gone_is_asked_after(crew: Crew) -> None:
    crew.lives[0][0].fails["update"] = RuntimeError("Connection closed by peer")
    crew.lives[0][1].fails["notes"] = WorkerDiedError("learner-1 died")
    assert (await crew.update("a")).step == 1
    assert crew.notes[0].startswith("learner-1 died; all learner ranks start again")
    crew.lives[1][0].fails["update"] = RuntimeError("a mistake of ours")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        await crew.update("b")


async def test_what_the_learner_itself_refuses_is_no_reason_to_start_again(crew: Crew) -> None:
    crew.lives[0][0].fails["update"] = NonFiniteLossError("not finite")
    with pytest.raises(NonFiniteLossError):
        await crew.update("a")
    assert len(crew.lives) == 1


async def test_past_the_budget_the_story_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.cluster.learner.shared", as_it_is)
    crew = Crew(limit=0)
    await crew.learner.start()
    crew.lives[0][0].fails["update"] = WorkerDiedError("learner-0 died")
    with pytest.raises(WorkerDiedError, match=r"1 failure within 60 s .*max_restarts=0.*learner-0 died") as told:
        await crew.update("a")
    with pytest.raises(WorkerDiedError, match=re.escape(str(told.value))):  # nothing is begun again for it
        await crew.update("b")


async def test_what_waits_ends_when_all_is_lost(crew: Crew) -> None:
    crew.lives[0][0].hangs = True
    waiting = asyncio.create_task(crew.update("a"))
    await until_async(lambda: crew.lives[0][0].asked)
    crew.learner.fail(MachineError("Ray's raylet died"))
    with pytest.raises(MachineError, match="raylet"):
        await waiting
    with pytest.raises(MachineError, match="raylet"):
        await crew.learner.load_checkpoint("x")


class HeldRank:
    """What an actor hosts; keeps in which order it was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.step = 0

    def update(self, groups: Sequence[Any], *, max_staleness: int, step: int) -> UpdateMetrics:
        self.calls.append("update")
        self.step = step
        return UpdateMetrics(step=step)

    def load_checkpoint(self, folder: str) -> int:
        self.calls.append("load")
        return self.step

    def export_adapter(self) -> AdapterPayload:
        self.calls.append("export")
        return AdapterPayload(version=self.step, files=())

    def probe_adapter(self) -> AdapterProbe:
        self.calls.append("probe")
        return AdapterProbe(version=self.step, training_logprobs=(), base_training_logprobs=(), tolerance=1.0)


async def test_an_adapter_is_exported_and_probed_before_anybody_asks() -> None:
    rank = HeldRank()
    actor = LearnerActor("learner-0", lambda name: lambda values: None, lambda: "node", lambda: "127.0.0.1")
    actor._rank = cast(Any, rank)
    for step in (1, 2):
        await actor.update(pickle.dumps(()), 0, step)
        await until_async(lambda: rank.calls[-1] == "probe")
        hurried = asyncio.create_task(actor.export_adapter())
        await others_run()
        hurried.cancel()
        assert (await actor.export_adapter())[0] == (await actor.probe_adapter()).version == step
    assert rank.calls == ["update", "export", "probe"] * 2
    await actor.load_checkpoint("")
    assert (await actor.export_adapter())[0] == (await actor.probe_adapter()).version == 2
    assert rank.calls[6:] == ["load", "export", "probe"]
