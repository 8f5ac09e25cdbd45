"""Ray: starts or joins it, puts the rooms' plain classes there as actors, and ends them.

Actors have readable names in the dashboard (`rollout-0`, `learner-0`) and publish their gauges as node metrics with the
prefix `rlvr_`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from orchestration.cluster.actors import Hosted, LearnerActor, RolloutActor, actor_environment
from orchestration.cluster.calls import Host, RemoteActor
from orchestration.cluster.deployment import preferred_node, start_on
from orchestration.cluster.environment import NODE_ENVIRONMENT, without_token
from orchestration.cluster.gauges import RayGauges
from orchestration.cluster.generator import RayGenerator
from orchestration.cluster.learner import RayLearner
from orchestration.cluster.nodes import alive_nodes, own_node, signs_of_gpus, sized_for_nodes
from orchestration.cluster.reward_actor import RewardServiceActor, ServiceEndpoint
from orchestration.concurrency import gather_or_cancel
from orchestration.errors import MachineError, one_line
from orchestration.machine.facts import collect
from orchestration.machine.model_sizes import model_size
from orchestration.machine.needs import object_store_bytes
from orchestration.machine.placement import (
    Placement,
    PlacementMode,
    Slot,
    effective_rollout,
    place,
    refuse_unseen_gpus,
)
from orchestration.models.here import named_anywhere
from orchestration.settings.config import RunConfig
from orchestration.settings.rewards import ActorDeployment

Engines = TypeVar("Engines")
Ranks = TypeVar("Ranks")


class Cluster:
    """A Ray cluster, joined or started here, with this run's actors in it."""

    def __init__(self, config: RunConfig, *, run_id: str) -> None:
        self._config, self._run_id = named_anywhere(config), run_id
        self._group: PlacementGroup | None = None
        self._actors: list[RemoteActor[Any]] = []
        self.placement: Placement | None = None
        self.dashboard_url: str | None = None

    def connect(self) -> Placement:
        """Join `ray_address` or start Ray here, and reserve the GPUs.

        Raises:
            MachineError: Ray does not start or join, or there are too few GPUs.
        """
        config = self._config
        environment = dict(NODE_ENVIRONMENT)
        if config.ray_address is None:
            # Inherited by every process of the node, so that actors need none of their own: a process with settings of
            # its own Ray starts anew, and those it has started already are left idle.
            environment |= without_token() | actor_environment("cuda" if collect().gpus else "cpu")
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        common = {"logging_level": "ERROR", "log_to_driver": False, "namespace": f"rlvr-{self._run_id}"}
        try:
            with signal_handlers_kept():
                if config.ray_address is not None:
                    context = ray.init(address=config.ray_address, **common)
                else:
                    store = object_store_bytes(model_size(config.model.name), config.learner)
                    context = ray.init(
                        address="local",  # not one that somebody else left running here
                        include_dashboard=config.dashboard,
                        object_store_memory=store,
                        **common,
                    )
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = config.ray_address or "this machine"
            raise MachineError(f"Ray did not start on {where}: {one_line(error)}") from error
        self.dashboard_url = context.dashboard_url or None
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        refuse_unseen_gpus(config, num_gpus=num_gpus, signs=signs_of_gpus(joined=config.ray_address is not None))
        self._config = config = sized_for_nodes(config, num_gpus=num_gpus)
        self.placement = place(config, num_gpus=num_gpus)
        self._reserve(self.placement)
        return self.placement

    def describe(self) -> str:
        """The cluster in one line, for the head of a report."""
        resources = ray.cluster_resources()
        parts = [f"{resources.get('CPU', 0):g} cores", f"{resources.get('GPU', 0):g} GPUs"]
        if self.placement is not None and self.placement.num_gpus:
            parts.append(self.placement.describe(int(resources["GPU"])))
        if self.dashboard_url:
            parts.append(f"dashboard http://{self.dashboard_url}")
        return ", ".join(parts)

    def _reserve(self, placement: Placement) -> None:
        if placement.num_gpus == 0:
            return
        bundles = [
            {"GPU": gpus, "CPU": cpus, **marks}
            for gpus, cpus, marks in zip(
                placement.bundle_gpus, placement.bundle_cpus, placement.bundle_marks, strict=True
            )
        ]
        self._group = placement_group(bundles, strategy="PACK", name=f"rlvr-{self._run_id}")
        if not self._group.wait(timeout_seconds=120):
            free = ray.available_resources()
            raise MachineError(
                f"Ray could not reserve {placement.num_gpus:g} GPUs within 120 s: {free.get('GPU', 0):g} are free; "
                f"another job may hold them (see the dashboard at {self.dashboard_url})"
            )

    def _create(
        self, actor_class: type[Host], slot: Slot, *args: Any, max_concurrency: int | None = None
    ) -> RemoteActor[Host]:
        assert self.placement is not None
        options: dict[str, Any] = {
            "name": slot.name,
            "num_gpus": slot.num_gpus,
            "num_cpus": slot.num_cpus,
            "resources": dict(slot.marks),
            **self._environment(),
        }
        if max_concurrency is not None:
            options["max_concurrency"] = max_concurrency
        if self._group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=slot.bundle
            )
        actor: RemoteActor[Host] = RemoteActor(
            slot.name, ray.remote(actor_class).options(**options).remote(slot.name, *args)
        )
        self._actors.append(actor)
        return actor

    def _environment(self) -> dict[str, Any]:
        """The actors' environment as an option of theirs; nodes that were started here have it."""
        if self._config.ray_address is None:
            return {}
        assert self.placement is not None
        defaults = actor_environment(self.placement.device)
        return {"runtime_env": {"env_vars": {name: os.environ.get(name, value) for name, value in defaults.items()}}}

    async def start_rollout(self) -> RayGenerator:
        """Start all engines; returns when each can generate."""
        assert self.placement is not None, "connect() comes first"
        settings = {
            "config": effective_rollout(self._config.rollout, self.placement),
            "device": self.placement.device,
            "run_id": self._run_id,
        }
        workers = [
            self._create(
                RolloutActor,
                slot,
                RayGauges,
                self._config,
                {**settings, "seed": self._config.seed * 1000 + index},
                max_concurrency=10_000,
            )
            for index, slot in enumerate(self.placement.rollout)
        ]
        timeout_s = self._config.rollout.start_timeout_s
        await gather_or_cancel(
            _started(worker, worker.call(RolloutActor.start, timeout_s=timeout_s)()) for worker in workers
        )
        return RayGenerator(workers, self._config)

    async def start_learner(self) -> RayLearner:
        """Start all ranks; returns when they have met and hold the model."""
        assert self.placement is not None, "connect() comes first"
        ranks = [
            self._create(LearnerActor, slot, RayGauges, ray.util.get_node_ip_address) for slot in self.placement.learner
        ]
        timeout_s = self._config.learner.start_timeout_s
        address, port = await ranks[0].call(LearnerActor.endpoint, timeout_s=timeout_s)()
        settings = {
            "world_size": len(ranks),
            "master_addr": address,
            "master_port": port,
            "config": self._config.learner,
            "temperature": self._config.rollout.temperature,
            "seed": self._config.seed,
            "device": self.placement.device,
            "max_completion_length": self._config.rollout.max_completion_length,
            "max_steps": self._config.max_steps,
            "reward_weights": tuple(reward.weight for reward in self._config.rewards),
        }
        await gather_or_cancel(
            _started(
                rank,
                rank.call(LearnerActor.start, timeout_s=timeout_s)(self._config, {**settings, "rank": index}),
            )
            for index, rank in enumerate(ranks)
        )
        return RayLearner(ranks, self._config)

    async def start_both(
        self, engines: Coroutine[Any, Any, Engines], ranks: Coroutine[Any, Any, Ranks]
    ) -> tuple[Engines, Ranks]:
        """Run the starts of both rooms at once; one after the other, engines first, where they share GPUs.

        While it starts, vLLM counts all that a GPU loses as taken by itself: weights of a learner that loads meanwhile
        would come off its cache, and it stops at memory that is given back.
        """
        assert self.placement is not None, "connect() comes first"
        if self.placement.mode is not PlacementMode.COLOCATED:
            generator, learner = await asyncio.gather(engines, ranks)
            return generator, learner
        with contextlib.closing(ranks):  # never begun where the engines fail
            return await engines, await ranks

    async def start_reward_service(self, log_folder: Path) -> tuple[RemoteActor[RewardServiceActor], ServiceEndpoint]:
        """Start the reward service on a CPU node, where there is one; returns when it is ready to score.

        Raises MachineError when no node takes it, ServiceStartError when it does not start there.
        """
        deployment = self._config.reward.deployment
        assert self.placement is not None, "connect() comes first"
        assert isinstance(deployment, ActorDeployment)
        options: dict[str, Any] = {"num_cpus": deployment.num_cpus, "resources": deployment.resources}
        if (node := preferred_node(alive_nodes(), deployment)) is not None:
            # With the public `soft` alone, Ray waits for a node that is there but full; with this it takes another.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                node.node_id, soft=True, _spill_on_unavailable=True
            )
        actor_class = ray.remote(RewardServiceActor).options(
            name="reward-0", max_concurrency=4, **self._environment(), **options
        )
        actor: RemoteActor[RewardServiceActor] = RemoteActor("reward-0", actor_class.remote("reward-0", own_node))
        self._actors.append(actor)
        endpoint = await start_on(actor, self._config, driver_node_id=own_node().node_id, log_folder=log_folder)
        return actor, endpoint

    async def shutdown(self, *, timeout_s: float = 20.0) -> None:
        """End the actors, then Ray if it was started here. Never raises: what does not end in time is killed."""
        goodbyes = [actor.call(Hosted.shutdown, timeout_s=timeout_s)() for actor in self._actors]
        await asyncio.gather(*goodbyes, return_exceptions=True)
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors.clear()
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
        ray.shutdown()


async def _started(actor: RemoteActor[Any], start: Coroutine[Any, Any, str]) -> None:
    actor.where = await start


@contextlib.contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and dies of it; whoever asked for it before the block has it again after."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    if threading.current_thread() is threading.main_thread():  # no other may
        for number, handler in kept.items():
            signal.signal(number, handler)
