"""Calls of an actor by reference to the methods of its class; the handle stands in for Ray's."""

from __future__ import annotations

import asyncio
import gc
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from grpc import RpcError
from ray.exceptions import OutOfDiskError, OwnerDiedError, RayTaskError

from orchestration.cluster import calls
from orchestration.cluster.adapter import RayAdapter
from orchestration.cluster.calls import Pending, RemoteActor
from orchestration.cluster.showing import actor_text as actor_texts
from orchestration.errors import MachineError, NoRoomError, RemoteTimeoutError, ValueLostError
from tests.waiting import others_run, until_async


class Counter:
    """An actor's class."""

    def add(self, number: int, *, times: int = 1) -> int:
        return number * times

    async def export(self, number: int) -> tuple[str, int]:
        return "receipt", number

    async def wait(self) -> None:
        await asyncio.Event().wait()

    def fail(self) -> None:
        raise KeyError("no such thing")


class Handle:
    """As Ray's: each method has `remote`, which begins a call and gives something to wait for."""

    def __getattr__(self, name: str) -> Handle:
        assert name in vars(Counter), f"Ray would not find {name}"
        handle = Handle()
        vars(handle)["method"] = getattr(Counter(), name)
        return handle

    def options(self, *, num_returns: int) -> Handle:
        vars(self)["num_returns"] = num_returns
        return self

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        async def run() -> Any:
            answer = vars(self)["method"](*args, **kwargs)
            return await answer if asyncio.iscoroutine(answer) else answer

        if "num_returns" not in vars(self):
            return asyncio.create_task(run())
        whole = asyncio.create_task(run())

        async def part(number: int) -> Any:
            return (await whole)[number]

        return [asyncio.create_task(part(number)) for number in range(vars(self)["num_returns"])]


ACTOR: RemoteActor[Counter] = RemoteActor("counter-0", Handle(), where="host h, pid 7")


async def test_arguments_go_there_and_the_answer_comes_back() -> None:
    assert await ACTOR.call(Counter.add, timeout_s=5)(3) == 3
    assert await ACTOR.call(Counter.add, timeout_s=5)(3, times=2) == 6
    begun = ACTOR.begin(Counter.export)(4)
    assert await begun.settled(timeout_s=5) == "receipt"
    assert await begun.result(timeout_s=5) == 4


async def test_who_does_not_answer_is_named_with_what_it_was_asked() -> None:
    with pytest.raises(RemoteTimeoutError, match=r"counter-0 \(host h, pid 7\) did not answer wait within 0\.01 s"):
        await ACTOR.call(Counter.wait, timeout_s=0.01)()


async def test_an_actors_own_error_arrives_as_it_is() -> None:
    with pytest.raises(KeyError, match="no such thing"):
        await ACTOR.call(Counter.fail, timeout_s=5)()


async def test_a_full_object_store_is_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    full = OutOfDiskError("Local disk is full")

    def remote(handle: Handle, *args: Any) -> Any:
        raise full

    monkeypatch.setattr(Handle, "remote", remote)  # of large arguments
    with pytest.raises(NoRoomError, match=r"could not be asked to add: Ray's object store is full"):
        await ACTOR.call(Counter.add, timeout_s=5)(3)
    for error in (full, RayTaskError("wait", "its traceback", full)):
        answer = asyncio.get_running_loop().create_future()
        answer.set_exception(error)
        with pytest.raises(NoRoomError, match=r"counter-0 .* could not wait: Ray's object store is full"):
            await calls._Answer(ACTOR, "wait", answer).result(timeout_s=5)


async def never_again() -> Any:
    raise AssertionError


async def test_an_adapter_that_is_gone_with_its_node_is_exported_once_more_for_all_who_want_it() -> None:
    exports = [Pending(answer=calls._Answer(ACTOR, "export", name), receipt=None) for name in ("first", "second")]
    num_exports = 0

    async def again() -> Any:
        nonlocal num_exports
        num_exports += 1
        await others_run()
        return exports[1]

    async def use(reference: str) -> str:
        await others_run()
        if reference in gone:
            error = RayTaskError("publish", "its traceback", OwnerDiedError("ab", None, "call site"))
            answer = asyncio.get_running_loop().create_future()
            answer.set_exception(error)
            await calls._Answer(ACTOR, "publish", answer).result(timeout_s=5)
        return reference

    gone = {"first"}
    adapter = RayAdapter(exports[0], never_again, again, timeout_s=5)
    assert await asyncio.gather(*(adapter.given(use) for _ in range(3))) == ["second"] * 3
    assert num_exports == 1
    gone.add("second")
    with pytest.raises(ValueLostError, match=r"counter-0 .* could not publish: .* is gone with the node that held it"):
        await adapter.given(use)
    assert num_exports == 2


async def test_a_probe_that_fails_when_nobody_waits_for_it_any_more_is_not_told_by_asyncio() -> None:
    """As when Ray's raylet dies in a publish: the workers are given up first, and then the learner."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    fails = asyncio.Event()

    async def probe() -> Any:
        await fails.wait()
        raise MachineError("the raylet is gone")

    exported = ACTOR.begin(Counter.export)(4)
    adapter = RayAdapter(exported, probe, never_again, timeout_s=5)
    waiting = asyncio.create_task(adapter.probe())
    await others_run()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    fails.set()
    await until_async(lambda: len(asyncio.all_tasks()) == 1)
    del adapter, waiting
    gc.collect()
    assert told == []


def test_an_actors_text_is_told_again_after_a_head_was_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    told, done = [], threading.Event()

    class Teller:
        def __init__(self, address: str, actor_id: bytes) -> None:
            assert (address, actor_id) == ("head:6379", bytes.fromhex("ab"))

        def __call__(self, text: str) -> None:
            told.append(text)
            actor_text.show("step 2")  # as the next figures do
            if len(told) == 1:
                raise RpcError("deadline exceeded")
            done.set()

    context = SimpleNamespace(get_actor_id=lambda: "ab", gcs_address="head:6379")
    monkeypatch.setattr(actor_texts.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(actor_texts, "_Teller", Teller)
    monkeypatch.setattr(actor_texts, "PERIOD_S", 0.0)
    actor_text = actor_texts.ActorText()
    actor_text.show("step 1")
    assert done.wait(30)
    assert told == ["step 1", "step 2"]
