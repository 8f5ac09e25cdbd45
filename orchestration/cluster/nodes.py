"""The nodes of the cluster that this process is part of."""

from __future__ import annotations

import ray

from orchestration.cluster.reward_actor import ClusterNode


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
