"""Calls of an actor by reference to the methods of its class; the handle stands in for Ray's."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from orchestration.cluster.adapter import RayAdapter
from orchestration.cluster.calls import RemoteActor
from orchestration.errors import MachineError, RemoteTimeoutError
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


async def test_a_probe_that_fails_when_nobody_waits_for_it_any_more_is_not_told_by_asyncio() -> None:
    """As when Ray's raylet dies in a publish: the workers are given up first, and then the learner."""
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    fails = asyncio.Event()

    async def probe() -> Any:
        await fails.wait()
        raise MachineError("the raylet is gone")

    adapter = RayAdapter(ACTOR.begin(Counter.export)(4), probe, timeout_s=5)
    waiting = asyncio.create_task(adapter.probe())
    await others_run()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    fails.set()
    await until_async(lambda: len(asyncio.all_tasks()) == 1)
    del adapter, waiting
    gc.collect()
    assert told == []
