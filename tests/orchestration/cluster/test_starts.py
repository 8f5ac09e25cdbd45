"""In which order the rooms start: where they share GPUs, vLLM would count the learner's memory as its own."""

from __future__ import annotations

import pytest

from orchestration.cluster.cluster import Cluster
from orchestration.machine.placement import place
from orchestration.settings.config import RunConfig
from tests.waiting import others_run


def cluster_on(num_gpus: int) -> Cluster:
    cluster = Cluster(RunConfig(), run_id="starts")
    cluster.placement = place(RunConfig(), num_gpus=num_gpus)
    return cluster


@pytest.mark.parametrize(("num_gpus", "order"), [(1, ["engines", "up", "ranks"]), (2, ["engines", "ranks", "up"])])
async def test_engines_are_up_before_ranks_on_a_shared_gpu(num_gpus: int, order: list[str]) -> None:
    seen: list[str] = []

    async def engines() -> str:
        seen.append("engines")
        await others_run(3)
        seen.append("up")
        return "generator"

    async def ranks() -> str:
        seen.append("ranks")
        return "learner"

    assert await cluster_on(num_gpus).start_both(engines(), ranks()) == ("generator", "learner")
    assert seen == order


async def test_ranks_do_not_start_when_the_engines_fail() -> None:
    async def engines() -> None:
        raise RuntimeError("no room")

    async def ranks() -> None:
        raise AssertionError("never begun")

    with pytest.raises(RuntimeError, match="no room"):
        await cluster_on(1).start_both(engines(), ranks())
