"""Gatherings of requests, and seeds that hang on a token's place. No vLLM here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rollout_server.config import Device, RolloutConfig
from rollout_server.engine import VllmEngine
from rollout_server.repeatable import cpu_seeds
from rollout_server.repeatable.turns import Turns
from rollout_server.types import Turn
from tests.waiting import others_run


class Engine:
    """Writes down what is handed to it."""

    def __init__(self, patience_s: float = 60.0) -> None:
        self.log: list[str] = []
        self.turns = Turns(self._held, patience_s)

    @asynccontextmanager
    async def _held(self, goes_on: bool) -> AsyncIterator[None]:
        self.log.append("hold, and keep the cache" if goes_on else "hold")
        yield
        self.log.append("go")

    def join(
        self, index: int, size: int, *, key: str = "k", fails: bool = False, goes_on: bool = False
    ) -> asyncio.Task[None]:
        async def begin() -> None:
            self.log.append(str(index))
            if fails:
                raise ValueError(f"{index} is wrong")

        return asyncio.create_task(self.turns.begin(Turn(key=key, index=index, size=size, goes_on=goes_on), begin))


async def test_all_are_handed_over_in_order_while_the_engine_is_held() -> None:
    engine = Engine()
    await asyncio.gather(*(engine.join(index, 3) for index in (2, 0, 1)))
    assert engine.log == ["hold", "0", "1", "2", "go"]
    await engine.join(0, 1, key="later", goes_on=True)
    assert engine.log[5:] == ["hold, and keep the cache", "0", "go"]


async def test_those_who_are_there_do_not_wait_for_ever() -> None:
    engine = Engine(patience_s=0.01)
    await asyncio.gather(engine.join(1, 3), engine.join(0, 3))
    await engine.join(2, 3)  # comes too late, and begins alone
    assert engine.log == ["hold", "0", "1", "go", "2"]


async def test_who_leaves_is_not_handed_over() -> None:
    engine = Engine()
    left, stays = engine.join(0, 3), engine.join(1, 3)
    await others_run()
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    last = engine.join(2, 3)
    await others_run()
    assert engine.log == []
    await asyncio.gather(engine.join(0, 3), stays, last)
    assert engine.log == ["hold", "0", "1", "2", "go"]


async def test_a_failure_is_everybodys_and_the_engine_goes_on() -> None:
    engine = Engine()
    answers = await asyncio.gather(engine.join(0, 2, fails=True), engine.join(1, 2), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["0 is wrong"] * 2
    await engine.join(0, 1, key="next")
    assert engine.log[-3:] == ["hold", "0", "go"]


def test_a_turn_among_workers_is_a_turn_on_each() -> None:
    places = [Turn(key="k", index=index, size=7).among(3) for index in range(7)]
    assert [(worker, turn.index, turn.size) for worker, turn in places] == [
        (0, 0, 3),
        (1, 0, 2),
        (2, 0, 2),
        (0, 1, 3),
        (1, 1, 2),
        (2, 1, 2),
        (0, 2, 3),
    ]


# --- seeds on CPUs


class Batch:
    def add_request(self, request: Any) -> Any:
        return request.generator


class Sampler:
    def forward_cpu(self, logits: Any, generators: dict[int, torch.Generator]) -> list[int]:
        return [int(torch.randint(0, 2**31, (1,), generator=generators[row])) for row in sorted(generators)]


def request(seed: int, drawn: list[int]) -> Any:
    generator = torch.Generator()
    generator.manual_seed(seed)
    return SimpleNamespace(generator=generator, sampling_params=SimpleNamespace(seed=seed), output_token_ids=drawn)


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    cpu_seeds.install(Batch, Sampler)


def test_a_draw_hangs_on_seed_and_place_alone() -> None:
    drawn: list[int] = []
    generator = Batch().add_request(request(5, drawn))
    first = Sampler().forward_cpu(None, {0: generator})
    assert Sampler().forward_cpu(None, {0: generator}) == first  # thrown away, and drawn again
    generator.set_offset(generator.get_offset() - 4)  # as vLLM takes back a draw
    drawn.append(7)
    second = Sampler().forward_cpu(None, {0: generator})
    assert second != first
    resumed = Batch().add_request(request(5, [7]))  # preempted meanwhile, in another place of the batch
    other = Batch().add_request(request(6, [7]))
    assert Sampler().forward_cpu(None, {0: other, 1: resumed})[1:] == second


def test_requests_without_a_seed_have_no_generator() -> None:
    assert Batch().add_request(SimpleNamespace(generator=None)) is None


def test_neighbouring_seeds_and_places_have_nothing_to_do_with_each_other() -> None:
    seeds = {cpu_seeds.mixed(seed, place) for seed in range(100) for place in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = sum(bin(seed).count("1") for seed in seeds) / (63 * len(seeds))
    assert bits == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("device", "own_seeds", "draws_by_them"),
    [("cpu", None, True), ("cuda", None, False), ("cpu", False, False), ("cuda", True, True)],
)
def test_seeds_are_used_where_they_cost_little_or_are_asked_for(
    device: Device, own_seeds: bool | None, draws_by_them: bool
) -> None:
    config = RolloutConfig(own_seeds=own_seeds)
    assert VllmEngine(model_path="", config=config, device=device, seed=0)._draws_by_seeds == draws_by_them
