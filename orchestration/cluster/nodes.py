"""The nodes of the cluster that this process is part of."""

from __future__ import annotations

import os

import ray

from orchestration.cluster.reward_actor import ClusterNode
from orchestration.machine.facts import gpu_signs
from orchestration.machine.placement import sized
from orchestration.settings.config import RunConfig


def alive_nodes() -> list[ClusterNode]:
    """The cluster's nodes, with what each has in all."""
    return [
        ClusterNode(node_id=node["NodeID"], address=node["NodeManagerAddress"], resources=node["Resources"])
        for node in ray.nodes()
        if node["Alive"]
    ]


def own_node() -> ClusterNode:
    """The node of the calling process."""
    node_id = ray.get_runtime_context().get_node_id()
    return next(node for node in alive_nodes() if node.node_id == node_id)


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
