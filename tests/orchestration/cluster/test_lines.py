"""Groups by a connection past Ray: real ones within this process; the handle stands in for Ray's."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from orchestration.cluster.actors import RolloutActor
from orchestration.cluster.adapter import RayAdapter
from orchestration.cluster.calls import Pending, RemoteActor, _Answer
from orchestration.cluster.generator import RayMember
from orchestration.cluster.upkeep.lines import Endpoint, Line, Listener
from orchestration.cluster.upkeep.pool import RolloutPool
from orchestration.cluster.upkeep.restarts import Restarts
from orchestration.errors import RemoteTimeoutError, RlvrError
from orchestration.settings.config import load_config
from rollout_server.types import AdapterPayload, AdapterProbe, Completion, FinishReason, Prompt, SamplingParams
from tests.waiting import until_async

CONFIG = load_config("tiny")
SAMPLING = SamplingParams(num_generations=1)
PROMPT = Prompt(prompt_id="p", token_ids=(1,))


class UnpicklableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Counter:
    """An actor's class."""

    def __init__(self) -> None:
        self.turns = [asyncio.Event() for _ in range(3)]

    async def repeat(self, number: int, *, times: int) -> bytes:
        """Later ones are answered first."""
        if number + 1 < len(self.turns):
            await self.turns[number + 1].wait()
        self.turns[number].set()
        return bytes([number]) * times

    async def fail(self, kind: str) -> None:
        raise {
            "own": KeyError("no such thing"),
            "disk": OSError(28, "No space left on device", "/x"),
            "odd": UnpicklableError(1, 2),
        }[kind]

    async def wait(self) -> None:
        await asyncio.Event().wait()


async def line_to(counter: Counter) -> RemoteActor[Counter]:
    end = await Listener(counter.repeat, counter.fail, counter.wait).listen("127.0.0.1")
    assert end is not None
    return RemoteActor("counter-0", None, where="host h, pid 7", line=await Line.to(end))


async def test_answers_of_any_size_come_to_who_asked_in_whatever_order_they_are_given() -> None:
    actor = await line_to(Counter())
    ask = actor.call(Counter.repeat, timeout_s=30)
    answers = await asyncio.gather(ask(0, times=3_000_000), ask(1, times=0), ask(2, times=70_000))
    assert answers == [b"\0" * 3_000_000, b"", b"\2" * 70_000]


async def test_what_fails_by_a_line_fails_as_it_does_through_ray() -> None:
    actor = await line_to(Counter())
    fail = actor.call(Counter.fail, timeout_s=30)
    with pytest.raises(KeyError, match="no such thing") as caught:
        await fail("own")
    assert "in fail" in str(caught.value.__cause__), "its traceback there"
    with pytest.raises(RlvrError, match=r"counter-0 \(host h, pid 7\) could not fail: /x: No space left"):
        await fail("disk")
    with pytest.raises(RuntimeError, match="UnpicklableError: 1 and 2"):
        await fail("odd")
    with pytest.raises(RemoteTimeoutError, match=r"counter-0 .* did not answer wait within 0\.01 s"):
        await actor.call(Counter.wait, timeout_s=0.01)()


READ: list[str] = []


class Bomb:
    def __reduce__(self) -> Any:
        return READ.append, ("what a stranger said",)


@pytest.mark.parametrize("secret", [b"x" * 32, b"x" * 200])
async def test_nothing_is_read_of_a_stranger(secret: bytes) -> None:
    end = await Listener(Counter().wait).listen("127.0.0.1")
    assert end is not None
    reader, writer = await asyncio.open_connection(end.host, end.port)
    content = pickle.dumps(Bomb())
    writer.write(secret + (0).to_bytes(8, "big") + b"\0" + len(content).to_bytes(8, "big") + content)
    assert await reader.read() == b"", "it was sent away"
    assert READ == []
    writer.close()
    assert str(end.secret) not in repr(end)


async def test_no_way_for_a_line_is_no_error() -> None:
    assert await Listener().listen("192.0.2.1") is None, "no address of this host"
    end = await Listener().listen("127.0.0.1")
    assert end is not None
    closed = Endpoint(host="127.0.0.1", port=1, secret=end.secret, methods=())
    assert await Line.to(closed) is None


class Engine:
    """Answers when it may."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may = asyncio.Event()

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> list[Completion]:
        self.asked.append(prompt.prompt_id)
        await self.may.wait()
        reason = FinishReason.STOP
        one = Completion(
            prompt_id=prompt.prompt_id,
            token_ids=(1,),
            sampling_logprobs=(0.0,),
            text="a",
            finish_reason=reason,
            adapter_version=0,
        )
        return [one] * sampling.num_generations

    async def publish(self, payload: AdapterPayload, probe: asyncio.Future[AdapterProbe]) -> int:
        return (await probe).version

    async def heartbeat(self) -> int:
        return len(self.asked)


class Actor(RolloutActor):
    """The actor itself, in this process, as Ray's handle: with the names of the methods that were called by it."""

    def __init__(self) -> None:
        super().__init__("rollout-0", lambda name: lambda values: None, lambda: "node", lambda: "127.0.0.1", CONFIG, {})
        self.engine: Any = Engine()
        self.called: list[str] = []
        self.before_told: Callable[[], None] = lambda: None

    async def tell_probe(self, probe: AdapterProbe) -> None:
        self.before_told()
        await super().tell_probe(probe)

    async def start(self) -> None:
        self._started = self.engine

    def __getattribute__(self, name: str) -> Any:
        if name not in (
            "here",
            "start",
            "listen",
            "generate",
            "publish",
            "tell_probe",
            "heartbeat",
        ) or "called" not in vars(self):
            return super().__getattribute__(name)
        method, called = super().__getattribute__(name), self.called

        class Method:
            @staticmethod
            def remote(*args: Any) -> asyncio.Task[Any]:
                called.append(name)
                return asyncio.create_task(method(*args))

        return Method()


async def test_a_group_whose_line_is_cut_is_asked_again_and_the_worker_stays() -> None:
    actor, counts = Actor(), dict[str, int]()

    async def ended(_: object) -> None:
        raise AssertionError("it lives")

    pool: RolloutPool[RayMember] = RolloutPool(
        lambda index, life: RayMember(RemoteActor("rollout-0", actor), CONFIG.rollout, ended),
        num_workers=1,
        stall_timeout_s=60.0,
        new_restarts=lambda: Restarts(limit=1, window_s=60.0),
        counts=counts,
        beat_s=3600.0,
    )
    await pool.start()
    asked = asyncio.create_task(pool.generate(PROMPT, SAMPLING))
    await until_async(lambda: actor.engine.asked)
    assert "generate" not in actor.called
    line = pool.members[0].actor.line
    assert line is not None
    line.close()
    await until_async(lambda: len(actor.engine.asked) == 2)
    actor.engine.may.set()
    answer: Sequence[Completion] = await asked
    assert [completion.text for completion in answer] == ["a"]
    assert counts == {"started": 1, "finished": 1, "asked_again": 1}
    assert actor.called == ["here", "start", "listen", "heartbeat", "generate"], "through Ray from then on"
    await pool.close()


async def test_a_probe_is_told_by_the_line_and_through_ray_where_that_is_cut() -> None:
    actor = Actor()

    async def ended(_: object) -> None:
        raise AssertionError("it lives")

    member = RayMember(RemoteActor("rollout-0", actor), CONFIG.rollout, ended)
    await member.start()

    async def published(version: int) -> object:
        async def probed() -> AdapterProbe:
            return AdapterProbe(
                version=version, training_logprobs=(-1.0,), base_training_logprobs=(-1.0,), tolerance=1.0
            )

        payload = AdapterPayload(version=version, files=(), probe_token_ids=(1,))
        answer = _Answer(member.actor, "export_adapter", payload)

        async def again() -> Pending[int, AdapterPayload]:
            raise AssertionError("nothing was lost")

        exported = Pending(answer=answer, receipt=answer)
        return await member.publish(RayAdapter(exported, probed, again, 60.0))

    assert await published(1) == 1
    assert actor.called == ["here", "start", "listen", "publish"]
    assert member.actor.line is not None
    actor.before_told = member.actor.line.close
    assert await published(2) == 2
    assert actor.called[4:] == ["publish", "tell_probe"]
