"""Several hosts, one of which is lost and another added: real Ray, vLLM and DeepSpeed on the tiny model, each host a
network namespace with a raylet of its own."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
import pytest_asyncio

from orchestration.cluster.cluster import Cluster
from orchestration.settings.config import load_config
from rollout_server.arrays import TokenIds
from rollout_server.types import Prompt, SamplingParams
from tests.orchestration.cluster.hosts import Hosts, Node, hosts, refused
from tests.orchestration.cluster.test_faults import Site
from tests.waiting import until_async

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
]
by_hand = pytest.mark.skipif("RLVR_SOAK" not in os.environ, reason="minutes; `make soak` runs it")

WORDS = (
    "rollout.min_workers=1",
    "rollout.max_workers=3",
    "rollout_nodes=rollout",
    "learner_nodes=learner",
    "rollout.stall_timeout_s=10",
    "learner.stall_timeout_s=10",
    "learner.lora.r=64",
    "rollout.max_lora_rank=64",
)
CUT_S = 6.0
"""Half of what Ray's head waits for a node here, and less than `stall_timeout_s`."""
LONG = SamplingParams(num_generations=4, max_completion_length=96, ignore_end_token=True)


@pytest.fixture(scope="module")
def network() -> Iterator[Hosts]:
    """This machine with Ray's head alone, a host with room for two workers, and one for the learner."""
    if (why := refused()) is not None:
        pytest.skip(why)
    with hosts() as network:
        network.add(num_cpus=2, resources=["rollout"])
        network.add(resources=["learner"])
        yield network


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(network: Hosts, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    notes: list[tuple[float, str]] = []

    def note(level: str, message: str) -> None:
        notes.append((time.monotonic(), message))
        print(f"{time.monotonic():.1f} {message}")

    config = load_config("tiny", [f"ray_address={network.ray_address}", *WORDS])
    cluster = Cluster(config, run_id=f"hosts-{os.getpid()}", note=note)
    try:
        await asyncio.to_thread(cluster.connect)
        pool, learner = await asyncio.gather(cluster.start_rollout(), cluster.start_learner())
        yield Site(pool, learner, tmp_path_factory.mktemp("hosts"), notes)
    finally:
        await cluster.shutdown()


def nodes_of(site: Site) -> set[str]:
    return {member.actor.process.node_id for member in site.pool.members if member.actor.process is not None}


async def test_an_adapter_goes_to_a_host_once_however_many_workers_it_has(site: Site, network: Hosts) -> None:
    await until_async(lambda: len(site.pool.members) == 2, 120)
    (rank,) = site.learner._ranks
    assert rank.process is not None
    assert rank.process.node_id not in nodes_of(site)
    assert len(nodes_of(site)) == 1
    await site.step()
    await assert_each_gets_it_once(site, network.nodes[:1])


async def assert_each_gets_it_once(site: Site, samplers: Sequence[Node]) -> None:
    payload = await (await site.learner.export_adapter()).fetch()
    before, size = [host.received_bytes() for host in samplers], sum(len(content) for _, content in payload.files)
    await site.publish()
    received = [host.received_bytes() - earlier for host, earlier in zip(samplers, before, strict=True)]
    print(f"an adapter of {size} bytes: {received} came to the hosts with workers")
    assert all(size < number < 1.5 * size for number in received)


@pytest.mark.parametrize("which", [0, 1], ids=["samples", "learns"])
async def test_a_host_without_its_network_for_some_seconds_goes_on(site: Site, network: Hosts, which: int) -> None:
    """Shorter than what Ray and the watch take for a loss: nobody is replaced, and nothing is lost or there twice."""
    before = processes(site)
    asked = [asyncio.create_task(site.pool.generate(prompt_called(f"cut-{which}-{n}"), LONG)) for n in range(6)]
    step = asyncio.create_task(site.step())
    await until_async(lambda: any(place.under_way for place in site.pool._places), 30)
    with network.nodes[which].unplugged():
        await asyncio.sleep(CUT_S)
    began = time.monotonic()
    answers = await asyncio.gather(*asked)
    await step
    print(f"{CUT_S:g} s without its network: all there {time.monotonic() - began:.1f} s after it is back")
    assert [answer[0].prompt_id for answer in answers] == [f"cut-{which}-{n}" for n in range(6)]
    assert processes(site) == before


def processes(site: Site) -> list[object]:
    return [each.process for each in (*(member.actor for member in site.pool.members), *site.learner._ranks)]


def prompt_called(name: str) -> Prompt:
    return Prompt(prompt_id=name, token_ids=TokenIds((1, 2, 3)))


async def test_a_host_is_lost_and_another_joins(site: Site, network: Hosts) -> None:
    lost = network.nodes[0]
    prompts = [prompt_called(f"p{n}") for n in range(6)]
    asked = [asyncio.create_task(site.pool.generate(prompt, LONG)) for prompt in prompts]
    await asyncio.sleep(0.3)
    began = time.monotonic()
    lost.power_off()
    network.nodes.remove(lost)
    await until_async(lambda: not site.pool.members, 60)
    print(f"noticed after {time.monotonic() - began:.1f} s")
    added = await asyncio.to_thread(network.add, resources=["rollout"])
    joined = time.monotonic()
    await until_async(lambda: site.pool.members, 120)
    print(f"at work {time.monotonic() - joined:.1f} s after the node was started")
    answers = await asyncio.gather(*asked)
    assert [answer[0].prompt_id for answer in answers] == [prompt.prompt_id for prompt in prompts]
    assert {completion.adapter_version for answer in answers for completion in answer} == {site.version}
    await site.step()
    assert added in network.nodes


@by_hand
async def test_four_hosts_three_of_which_sample(site: Site, network: Hosts) -> None:
    for _ in range(2):
        await asyncio.to_thread(network.add, resources=["rollout"])
    await until_async(lambda: len(nodes_of(site)) == 3, 240)
    await site.step()
    await assert_each_gets_it_once(site, network.nodes[1:])


@by_hand
async def test_the_learners_host_is_lost(site: Site, network: Hosts) -> None:
    checksum = await site.publish()
    adapter = await site.learner.export_adapter()
    network.remove(network.nodes[0])
    network.add(resources=["learner"])
    began = time.monotonic()
    await site.pool.publish(adapter)  # its bytes were on that host
    assert (await adapter.fetch()).checksum() == checksum
    print(f"the learner is back {time.monotonic() - began:.1f} s after another node was started")
    await site.step()
