"""Workers and ranks are killed and stopped for real, in one cluster: real Ray, vLLM and DeepSpeed on the tiny model.

Each at a moment that matters; `test_soak` does it at random ones."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import ray

from learner.types import ScoredCompletion, ScoredGroup
from orchestration.cluster.cluster import Cluster
from orchestration.cluster.generator import RayMember
from orchestration.cluster.learner import RayLearner
from orchestration.cluster.upkeep.pool import RolloutPool
from orchestration.errors import MachineError
from orchestration.settings.config import load_config
from rollout_server.arrays import TokenIds
from rollout_server.forking import leftovers
from rollout_server.forking.client import ADDRESS
from rollout_server.forking.leftovers import remove_leftovers
from rollout_server.types import Completion, Prompt, SamplingParams
from tests.waiting import until_async

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]

STALL_S = 5
LONG = SamplingParams(num_generations=4, max_completion_length=96, ignore_end_token=True)
SHORT = SamplingParams(num_generations=4, max_completion_length=8)


@dataclass
class Site:
    """A cluster with two workers and a learner, and what it said."""

    pool: RolloutPool[RayMember]
    learner: RayLearner
    folder: Path
    notes: list[tuple[float, str]] = field(default_factory=list)
    version: int = 0

    async def step(self) -> str:
        """Learn from new groups and publish the result; returns the adapter's checksum."""
        await self.learner.update(tuple([await scored(self.pool, f"s{self.version}-{n}") for n in range(2)]))
        self.version += 1
        return await self.publish()

    async def publish(self) -> str:
        adapter = await self.learner.export_adapter()
        payload = await adapter.fetch()
        assert payload.version == self.version
        await self.pool.publish(adapter)
        return payload.checksum()

    async def whole_again(self) -> None:
        await until_async(lambda: len(self.pool.members) == 2, 300)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    words = (
        "rollout.num_workers=2",
        f"rollout.stall_timeout_s={STALL_S}",
        f"learner.stall_timeout_s={STALL_S}",
        "max_restarts=50",
        "restart_window_s=3600",
        "dashboard=false",
    )
    notes: list[tuple[float, str]] = []

    def note(level: str, message: str) -> None:
        notes.append((time.monotonic(), message))
        print(f"{time.monotonic():.1f} {message}")

    cluster = Cluster(load_config("tiny", words), run_id=f"faults-{os.getpid()}", note=note)
    began = time.monotonic()
    try:
        cluster.connect()
        pool, learner = await asyncio.gather(cluster.start_rollout(), cluster.start_learner())
        print(f"started in {time.monotonic() - began:.1f} s")
        yield Site(pool, learner, tmp_path_factory.mktemp("faults"), notes)
    finally:
        began = time.monotonic()
        await cluster.shutdown()
        print(f"ended in {time.monotonic() - began:.1f} s")
    assert remove_leftovers() == []
    own = [psutil.Process(pid).cmdline() for pid, owner in leftovers.owned_processes() if owner == leftovers.mark()]
    assert [line for line in own if any("ray" in word for word in line)] == []


async def scored(pool: RolloutPool[RayMember], name: str) -> ScoredGroup:
    completions = await pool.generate(Prompt(prompt_id=name, token_ids=(1, 2, 3)), SHORT)
    members = tuple(
        ScoredCompletion(completion=completion, rewards=(float(n),), total=float(n))
        for n, completion in enumerate(completions)
    )
    return ScoredGroup(prompt_id=name, prompt_token_ids=(1, 2, 3), members=members)


def pid_of(actor: Any) -> int:
    assert actor.process is not None
    return int(actor.process.pid)


def fork_server() -> psutil.Process:
    """What these tests' engines and ranks are forked from."""
    server = Path(os.environ[ADDRESS]).parent.name
    family = [p for p in psutil.process_iter(["cmdline"]) if any(server in word for word in p.info["cmdline"] or ())]
    (root,) = [p for p in family if p.ppid() not in {other.pid for other in family}]
    return root


async def under_way(site: Site, names: Sequence[str]) -> list[asyncio.Task[Sequence[Completion]]]:
    """Long groups, of which every worker has begun some."""
    before = {member: await member.heartbeat() for member in site.pool.members}
    prompts = [Prompt(prompt_id=name, token_ids=TokenIds((1, 2, 3))) for name in names]
    asked = [asyncio.create_task(site.pool.generate(prompt, LONG)) for prompt in prompts]

    async def all_make_steps() -> bool:
        return all([await member.heartbeat() > steps for member, steps in before.items()])

    await until_async(all_make_steps)
    return asked


async def all_answered(site: Site, fault: Callable[[], None], names: list[str]) -> list[Completion]:
    """Groups that are under way when something happens; every one is answered, and once."""
    asked = await under_way(site, names)
    began = time.monotonic()
    fault()
    answers = await asyncio.gather(*asked)
    print(f"all answered {time.monotonic() - began:.1f} s after the fault")
    assert [answer[0].prompt_id for answer in answers] == names
    assert {len(answer) for answer in answers} == {LONG.num_generations}
    return [completion for answer in answers for completion in answer]


NAMES = [f"p{n}" for n in range(8)]


async def test_actors_have_names_and_their_figures_are_the_nodes_metrics(site: Site) -> None:
    """Before anything happens to them."""
    await asyncio.gather(*(scored(site.pool, f"m{n}") for n in range(4)))
    await until_async(lambda: asyncio.to_thread(has_metrics_of, "rollout-0", "rollout-1"), 60, poll_s=0.5)
    assert sorted(ray.util.list_named_actors()) == ["learner-0", "rollout-0", "rollout-1"]


def has_metrics_of(*workers: str) -> bool:
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    names = ("rollout_tokens_per_s", "running_requests", "waiting_requests", "adapter_version")
    return all(re.search(rf'rlvr_{name}\{{[^}}]*worker="{worker}"', text) for name in names for worker in workers)


async def test_a_killed_actor_is_replaced_by_one_with_the_current_adapter(site: Site) -> None:
    await site.step()
    victim = site.pool.members[0].actor
    await all_answered(site, lambda: os.kill(pid_of(victim), signal.SIGKILL), NAMES)
    await site.whole_again()
    assert any("is back" in note and f"adapter version {site.version}" in note for _, note in site.notes)
    (newcomer,) = [
        member for member in site.pool.members if member.actor.name.startswith(victim.name.partition(".")[0] + ".")
    ]
    answer = await newcomer.generate(Prompt(prompt_id="n", token_ids=(1, 2, 3)), SHORT)
    assert {completion.adapter_version for completion in answer} == {site.version}


async def test_a_worker_stopped_in_a_publish_does_not_hold_it_up(site: Site) -> None:
    victim = site.pool.members[0].actor
    os.kill(pid_of(victim), signal.SIGSTOP)
    await site.step()
    await site.whole_again()


async def test_a_killed_learner_goes_back_and_makes_the_same_step_again(site: Site) -> None:
    await site.learner.save_checkpoint(str(site.folder), {})
    checksum = await site.step()
    os.kill(pid_of(site.learner._ranks[0]), signal.SIGKILL)
    assert await site.publish() == checksum
    await site.step()


async def test_without_its_raylet_all_ends_and_says_why(site: Site) -> None:
    """The last one: nothing works afterwards."""
    node = ray._private.worker.global_worker.node
    (raylet,) = node.all_processes["raylet"]
    asked = asyncio.create_task(site.pool.generate(Prompt(prompt_id="p", token_ids=(1, 2, 3)), LONG))
    os.kill(raylet.process.pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(MachineError, match=r"Ray's own raylet \(pid \d+\) was killed by SIGKILL"):
        await asked
    with pytest.raises(MachineError, match="raylet"):
        await site.learner.export_adapter()
    with pytest.raises(MachineError, match="raylet"):
        await site.learner._start(9)  # at once: Ray would wait a minute for itself, and all of this process with it
    print(f"said {time.monotonic() - began:.1f} s after the fault")
