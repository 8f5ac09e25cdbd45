"""The nodes of the cluster that this process is part of."""

from __future__ import annotations

import asyncio
import os
import signal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestration.cluster.reward.actor import ClusterNode
from orchestration.cluster.upkeep.whereabouts import Whereabouts, end_here
from orchestration.concurrency import before
from orchestration.machine.facts import gpu_signs
from orchestration.machine.placement import sized
from orchestration.settings.config import RunConfig

_LOOK_S = 1.0
"""Between two looks at which nodes there are."""


def alive_nodes() -> list[ClusterNode]:
    """The cluster's nodes, with what each has in all."""
    return [
        ClusterNode(node_id=node["NodeID"], address=node["NodeManagerAddress"], resources=node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def own_node() -> ClusterNode:
    """The node of the calling process."""
    node_id = own_node_id()
    return next(node for node in alive_nodes() if node.node_id == node_id)


def own_node_id() -> str:
    """Of the calling process, without asking anybody."""
    return str(ray.get_runtime_context().get_node_id())


def dead_ray_processes() -> list[str]:
    """Those of Ray's own processes on this node that nothing works without and that have ended, with how; none where
    somebody else has started them."""
    node = ray._private.worker.global_worker.node
    if node is None:
        return []
    return [
        f"{kind} (pid {process.pid}) {_ended(process.returncode)}"
        for kind, process in node.dead_processes()
        if kind in ("gcs_server", "raylet")
    ]


def _ended(exit_code: int) -> str:
    return f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"


async def end_process(process: Whereabouts, *, timeout_s: float) -> None:
    """Kill a process wherever it is; Ray itself does not reach one that is stopped. Never raises: it may be gone, and
    its node too."""
    try:
        async with asyncio.timeout(timeout_s):
            if process.node_id == own_node_id():
                await asyncio.to_thread(end_here, process)
                return
            there = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
            end = ray.remote(end_here).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            gone = asyncio.ensure_future(_until_gone(process.node_id))
            try:
                await before(gone, end.remote(process))
            finally:
                gone.cancel()
    except (TimeoutError, ray.exceptions.RayError, OSError):
        return


async def _until_gone(node_id: str) -> None:
    """Returns when a node is taken for lost: what is asked of it then, Ray may never answer."""
    while any(node.node_id == node_id for node in await asyncio.to_thread(alive_nodes)):  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)


def signs_of_gpus(*, joined: bool) -> tuple[str, ...]:
    """What says that this machine has GPUs. For a driver that a cluster started itself (`joined`), CUDA_VISIBLE_DEVICES
    is no sign of none: Ray empties it where no GPU was asked for."""
    hidden = () if not joined else ("CUDA_VISIBLE_DEVICES",)
    return gpu_signs(environment={name: value for name, value in os.environ.items() if name not in hidden})


def sized_for_nodes(config: RunConfig, *, num_gpus: int) -> RunConfig:
    """The run with numbers of workers and ranks, from those of the `num_gpus` GPUs that other jobs leave."""
    nodes = [node.resources for node in alive_nodes()]

    def gpus_of(mark: str | None) -> int | None:
        return None if mark is None else int(sum(node.get("GPU", 0) for node in nodes if node.get(mark)))

    apart = config.rollout_nodes != config.learner_nodes
    return sized(
        config,
        num_gpus=min(num_gpus, max(1, int(ray.available_resources().get("GPU", 0)))),
        on_a_host=int(max((node.get("GPU", 0) for node in nodes), default=0)),
        rollout_gpus=gpus_of(config.rollout_nodes) if apart else None,
        learner_gpus=gpus_of(config.learner_nodes) if apart else None,
    )
