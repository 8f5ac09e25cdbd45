"""What is done on a node before anything of a run starts there."""

from __future__ import annotations

from orchestration.cluster.hosted_rank import LEARNER_MODULES
from orchestration.cluster.upkeep.whereabouts import claim_node
from orchestration.machine.facts import collect
from orchestration.settings.config import RunConfig
from rollout_server.worker import start_fork_server


def import_ahead(config: RunConfig) -> None:
    """Have what engines and ranks import imported from now on, while everything else is made ready, where they will be
    forked here. Before anything is started, what killed runs have left on this machine is removed."""
    claim_node()
    if config.ray_address is None and not collect().gpus:
        start_fork_server(LEARNER_MODULES if config.max_steps else ())
