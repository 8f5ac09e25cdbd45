"""The reward service as an actor of a real Ray cluster: where it is put, and what if it dies.

A run that learns from it, and what it leaves, are in `test_end_to_end`.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestration.cluster.cluster import Cluster
from orchestration.cluster.nodes import alive_nodes
from orchestration.cluster.upkeep.whereabouts import claim_node, end_here
from orchestration.errors import MachineError
from orchestration.settings.config import RunConfig, load_config
from reward_service.types import RewardItem, RewardSpec
from rollout_server.forking import leftovers
from tests.waiting import came_true, until, until_async

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

STARTED = re.compile(r"Started server process \[(\d+)\]")


@pytest.fixture
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray's files of this test; short, as sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))  # an actor that is killed leaves a folder
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def two_nodes(ray_folder: Path) -> Iterator[Any]:
    """A cluster of a node with a GPU, which nothing uses, and one without that an operator has named `reward`.

    It is of a process that has had a run before, whose end is no end of these nodes.
    """
    from ray.cluster_utils import Cluster as TwoNodes

    claim_node()
    # Its dashboard would take the port that another test's has asked for, and is about to take.
    head = {"num_cpus": 4, "num_gpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    nodes = TwoNodes(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=2, num_gpus=0, resources={"reward": 1}, object_store_memory=80 * 2**20)
    yield nodes
    nodes.shutdown()


def config(*words: str) -> RunConfig:
    return load_config("tiny", ["reward.deployment=actor", "dashboard=false", *words])


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def texts(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        yield path, path.read_bytes()


async def refuses_what_no_node_has(address: str, folder: Path) -> None:
    """Said at once."""
    cluster = Cluster(
        config(f"ray_address={address}", "reward.deployment.resources.reward=2"), run_id=f"lacks-{os.getpid()}"
    )
    try:
        cluster.connect()
        with pytest.raises(MachineError, match=r"a node with 1 CPU, 2 reward, and the cluster has .*, 1 reward;"):
            async with cluster.reward_client(folder):
                pass
    finally:
        await cluster.shutdown()


async def test_it_goes_to_the_node_without_gpus_and_another_starts_when_it_dies(
    two_nodes: Any, tmp_path: Path, ray_folder: Path
) -> None:
    await refuses_what_no_node_has(two_nodes.address, tmp_path)
    settings = config(f"ray_address={two_nodes.address}", "reward.deployment.resources.reward=1")
    notes: list[str] = []
    cluster = Cluster(settings, run_id=f"test-{os.getpid()}", note=lambda level, message: notes.append(message))
    try:
        cluster.connect()
        await until_async(lambda: sorted(node.resources.get("GPU", 0) for node in alive_nodes()) == [0, 1])
        async with cluster.reward_client(tmp_path) as keeper:
            item = RewardItem(id="0", completion="#### The final answer is 7", reference={"final_answer": "7"})
            (result,) = await keeper.score([item], [RewardSpec(name="gsm8k_correctness")])
            assert result.total == 1.0
            assert list(tmp_path.iterdir()) == []  # not the driver's node: the log is in Ray's
            service = int(await asyncio.to_thread(logged_pid, ray_folder))
            client = keeper.client
            (where,) = re.findall(r"the reward service is on node .*, pid (\d+)", " ".join(notes))
            os.kill(int(where), signal.SIGKILL)
            await until_async(lambda: keeper.client is not client, 120)
            (result,) = await keeper.score([item], [RewardSpec(name="gsm8k_correctness")])
            assert result.total == 1.0
            assert re.search(r"reward-0 \(node [\d.]+, host .*, pid \d+\) died during watch", " ".join(notes))
            assert await asyncio.to_thread(came_true, lambda: is_gone(service))
    finally:
        await cluster.shutdown()


def processes_of(owner: str) -> list[int]:
    return [pid for pid, name in leftovers.owned_processes() if name == owner]


def logged_pid(ray_folder: Path) -> str:
    found: list[str] = []

    def look() -> bool:
        found.extend(pid for _, text in texts(ray_folder) for pid in STARTED.findall(text.decode(errors="replace")))
        return bool(found)

    until(look)
    return found[0]


DRIVER = """
import asyncio, sys
from pathlib import Path
from orchestration.cluster.cluster import Cluster
from orchestration.settings.config import load_config
from rollout_server.forking.leftovers import mark

async def main():
    config = load_config("tiny", ["reward.deployment=actor", "dashboard=false"])
    cluster = Cluster(config, run_id="killed")
    cluster.connect()
    async with cluster.reward_client(Path(sys.argv[1])):
        print("ready", mark(), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def test_it_ends_with_a_driver_that_is_killed_and_a_later_start_clears_up_the_rest(
    tmp_path: Path, ray_folder: Path
) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        ready, owner = driver.stdout.readline().split()
        assert ready == "ready"
        assert processes_of(owner)
        (pid,) = STARTED.findall((tmp_path / "reward_service.log").read_text())
        assert not is_gone(int(pid))
    finally:
        driver.kill()
        driver.communicate()
    until(lambda: is_gone(int(pid)), 60)
    end_here(None)  # as every start does; Ray's agents would stay for good
    until(lambda: not processes_of(owner), 60)
    assert [path for folder in (Path("/dev/shm"), Path("/tmp"), ray_folder) for path in folder.glob(f"*{owner}*")] == []
