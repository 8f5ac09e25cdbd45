"""In which order the rooms start: where they share GPUs, vLLM would count the learner's memory as its own."""

from __future__ import annotations

import signal
import subprocess

import pytest

from orchestration.cluster import joining
from orchestration.cluster.cluster import Cluster
from orchestration.cluster.upkeep.whereabouts import hear_sigterm
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


def test_what_ray_starts_does_not_hear_sigterm_and_what_its_actors_start_does() -> None:
    with joining._ends_blocked():
        deaf = subprocess.Popen(["sleep", "600"])
        hear_sigterm()
        hearing = subprocess.Popen(["sleep", "600"])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    deaf.terminate()
    deaf.send_signal(signal.SIGHUP)
    hearing.terminate()
    assert hearing.wait(60) == -signal.SIGTERM
    assert deaf.poll() is None
    deaf.kill()
    assert deaf.wait(60) == -signal.SIGKILL


async def test_ranks_do_not_start_when_the_engines_fail() -> None:
    async def engines() -> None:
        raise RuntimeError("no room")

    async def ranks() -> None:
        raise AssertionError("never begun")

    with pytest.raises(RuntimeError, match="no room"):
        await cluster_on(1).start_both(engines(), ranks())
