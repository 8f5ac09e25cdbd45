"""Ray: starts it, hosts the rooms' plain classes as actors, and turns their answers into the loop's ports.

The only file that imports ray. Actors have readable names in the dashboard (`rollout-0`, `learner-0`) and publish
their gauges as node metrics with the prefix `rlvr_`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.metrics import Gauge
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from learner.types import ScoredGroup, UpdateMetrics
from orchestration.cluster.actors import LearnerActor, RolloutActor, actor_environment
from orchestration.cluster.deployment import preferred_node, start_on
from orchestration.cluster.environment import NODE_ENVIRONMENT, without_token
from orchestration.cluster.reward_actor import ClusterNode, RewardServiceActor, ServiceEndpoint
from orchestration.concurrency import gather_or_cancel
from orchestration.errors import MachineError, RemoteTimeoutError, WorkerDiedError
from orchestration.machine.needs import model_size, object_store_bytes
from orchestration.machine.placement import Placement, Slot, effective_rollout, place
from orchestration.models.here import named_anywhere
from orchestration.run.ports import AdapterHandle
from orchestration.settings.config import RunConfig
from orchestration.settings.rewards import ActorDeployment
from rollout_server.balancing import Balancer, prefix_key
from rollout_server.types import (
    AdapterPayload,
    Completion,
    Prompt,
    PublishReport,
    SamplingParams,
    WorkerStats,
)

Result = TypeVar("Result")


class RayGauges:
    """Numbers as Ray node metrics, `rlvr_<name>{worker=…}`."""

    def __init__(self, worker: str) -> None:
        self._worker = worker
        self._gauges: dict[str, Gauge] = {}

    def __call__(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"rlvr_{name}", description=name.replace("_", " "), tag_keys=("worker",))
            self._gauges[name].set(value, tags={"worker": self._worker})


@dataclass(slots=True)
class RemoteActor:
    """An actor's handle with what error messages need to say about it."""

    name: str
    handle: Any
    where: str = "not started yet"

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        """Call a method and wait for its answer, at most `timeout_s` seconds.

        Raises the method's own exception as it was raised there; RemoteTimeoutError and WorkerDiedError say who.
        """
        return await self.wait(getattr(self.handle, method).remote(*args), method, timeout_s=timeout_s)

    async def wait(self, reference: Any, method: str, *, timeout_s: float) -> Any:
        return await self._translated(reference, method, timeout_s)

    async def settled(self, reference: Any, method: str, *, timeout_s: float) -> None:
        """Wait until an answer is there, without bringing it here; raises as `call` does."""

        async def ready() -> None:
            loop = asyncio.get_running_loop()
            done, _ = await loop.run_in_executor(
                None, lambda: ray.wait([reference], timeout=timeout_s, fetch_local=False)
            )
            if not done:
                raise TimeoutError

        await self._translated(ready(), method, timeout_s)

    async def _translated(self, answer: Awaitable[Result], method: str, timeout_s: float) -> Result:
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise RemoteTimeoutError(
                f"{self.name} ({self.where}) did not answer {method} within {timeout_s:g} s; "
                f"its log is in {log_folder()}"
            ) from error
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            reason = " ".join(str(error).split())
            raise WorkerDiedError(
                f"{self.name} ({self.where}) died during {method}: {reason[:400]} Its log is in {log_folder()}; "
                f"a process killed by the system usually means too little memory"
            ) from error


def log_folder() -> str:
    """Where Ray keeps the actors' logs."""
    node = ray._private.worker.global_worker.node
    return str(node.get_logs_dir_path()) if node is not None else "Ray's session folder"


class RayAdapter:
    """An exported adapter in Ray's object store."""

    def __init__(self, version: int, reference: Any, actor: RemoteActor, timeout_s: float) -> None:
        self._version, self.reference, self._actor, self._timeout_s = version, reference, actor, timeout_s

    @property
    def version(self) -> int:
        return self._version

    async def fetch(self) -> AdapterPayload:
        payload: AdapterPayload = await self._actor.wait(self.reference, "export_adapter", timeout_s=self._timeout_s)
        return payload


class RayGenerator:
    """The rollout workers. A group goes to the worker with the least to do; an adapter goes to all of them."""

    def __init__(self, workers: Sequence[RemoteActor], config: RunConfig) -> None:
        self._workers, self._rollout = tuple(workers), config.rollout
        self._balancer = Balancer(num_workers=len(workers))

    @property
    def workers(self) -> tuple[RemoteActor, ...]:
        return self._workers

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        num_sequences = sampling.num_generations
        index = self._balancer.begin(prefix=prefix_key(prompt.token_ids), num_sequences=num_sequences)
        try:
            completions: Sequence[Completion] = await self._workers[index].call(
                "generate", prompt, sampling, timeout_s=self._rollout.generate_timeout_s
            )
        finally:
            self._balancer.end(index, num_sequences=num_sequences)
        return completions

    async def publish(self, adapter: AdapterHandle) -> Sequence[PublishReport]:
        assert isinstance(adapter, RayAdapter), "its bytes must be in the object store the workers read"
        timeout_s = self._rollout.publish_timeout_s
        return await gather_or_cancel(
            worker.call("publish", adapter.reference, timeout_s=timeout_s) for worker in self._workers
        )

    async def stats(self) -> Sequence[WorkerStats]:
        return await gather_or_cancel(worker.call("stats", timeout_s=30.0) for worker in self._workers)


class RayLearner:
    """All learner ranks, called together."""

    def __init__(self, ranks: Sequence[RemoteActor], config: RunConfig) -> None:
        self._ranks, self._config = tuple(ranks), config
        self._version = 0

    async def update(self, groups_P: Sequence[ScoredGroup]) -> UpdateMetrics:
        groups = ray.put(tuple(groups_P))
        timeout_s = self._config.learner.update_timeout_s
        answers = await self._all("update", groups, self._version, self._config.max_staleness, timeout_s=timeout_s)
        self._version += 1
        metrics: UpdateMetrics = answers[0]
        return metrics

    async def export_adapter(self) -> RayAdapter:
        """All ranks take part (ZeRO-3 gathers); the bytes stay in the object store of rank 0's node."""
        timeout_s = self._config.rollout.publish_timeout_s
        references = [rank.handle.export_adapter.remote(self._version) for rank in self._ranks]
        await gather_or_cancel(
            rank.settled(reference, "export_adapter", timeout_s=timeout_s)
            for rank, reference in zip(self._ranks, references, strict=True)
        )
        return RayAdapter(self._version, references[0], self._ranks[0], timeout_s)

    async def save_checkpoint(self, folder: str, files: Mapping[str, bytes]) -> None:
        await self._all("save_checkpoint", folder, files, timeout_s=self._config.learner.update_timeout_s)

    async def load_checkpoint(self, folder: str) -> int:
        steps = await self._all("load_checkpoint", folder, timeout_s=self._config.learner.start_timeout_s)
        self._version = int(steps[0])
        return self._version

    async def _all(self, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """The same call on all ranks. The first failure is raised at once: the others may wait in a collective."""
        return await gather_or_cancel(rank.call(method, *args, timeout_s=timeout_s) for rank in self._ranks)


class Cluster:
    """A Ray cluster, joined or started here, with this run's actors in it."""

    def __init__(self, config: RunConfig, *, run_id: str) -> None:
        self._config, self._run_id = named_anywhere(config), run_id
        self._owns_ray = False
        self._group: PlacementGroup | None = None
        self._actors: list[RemoteActor] = []
        self.placement: Placement | None = None
        self.dashboard_url: str | None = None

    def connect(self) -> Placement:
        """Join `ray_address` or start Ray here, and reserve the GPUs.

        Raises:
            MachineError: Ray does not start or join, or there are too few GPUs.
        """
        config = self._config
        for name, value in {**NODE_ENVIRONMENT, **(without_token() if config.ray_address is None else {})}.items():
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
            raise MachineError(f"Ray did not start on {where}: {' '.join(str(error).split())[:300]}") from error
        self._owns_ray = config.ray_address is None
        self.dashboard_url = context.dashboard_url or None
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        self.placement = place(config, num_gpus=num_gpus)
        self._reserve(self.placement)
        return self.placement

    def describe(self) -> str:
        """The cluster in one line, for the head of a report."""
        resources = ray.cluster_resources()
        parts = [f"{resources.get('CPU', 0):g} cores", f"{resources.get('GPU', 0):g} GPUs"]
        if self.dashboard_url:
            parts.append(f"dashboard http://{self.dashboard_url}")
        return ", ".join(parts)

    def metrics_url(self) -> str:
        """Where this node's metrics can be read, in Prometheus' text format."""
        node = ray.nodes()[0]
        return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def actor_names(self) -> list[str]:
        """Names of this run's actors, as the dashboard shows them."""
        return sorted(ray.util.list_named_actors())

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

    def _create(self, actor_class: type, slot: Slot, *args: Any, max_concurrency: int | None = None) -> RemoteActor:
        assert self.placement is not None
        options: dict[str, Any] = {
            "name": slot.name,
            "num_gpus": slot.num_gpus,
            "num_cpus": slot.num_cpus,
            "resources": dict(slot.marks),
            "runtime_env": {"env_vars": actor_environment(self.placement, actor_class)},
        }
        if max_concurrency is not None:
            options["max_concurrency"] = max_concurrency
        if self._group is not None:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(
                placement_group=self._group, placement_group_bundle_index=slot.bundle
            )
        actor = RemoteActor(slot.name, ray.remote(actor_class).options(**options).remote(slot.name, *args))
        self._actors.append(actor)
        return actor

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
        await self._start_all(workers, self._config.rollout.start_timeout_s)
        return RayGenerator(workers, self._config)

    async def start_learner(self) -> RayLearner:
        """Start all ranks; returns when they have met and hold the model."""
        assert self.placement is not None, "connect() comes first"
        ranks = [
            self._create(LearnerActor, slot, RayGauges, ray.util.get_node_ip_address) for slot in self.placement.learner
        ]
        timeout_s = self._config.learner.start_timeout_s
        address, port = await ranks[0].call("endpoint", timeout_s=timeout_s)
        settings = {
            "world_size": len(ranks),
            "master_addr": address,
            "master_port": port,
            "config": self._config.learner,
            "temperature": self._config.rollout.temperature,
            "seed": self._config.seed,
            "device": self.placement.device,
        }
        await self._start_all(ranks, timeout_s, lambda index: (self._config, {**settings, "rank": index}))
        return RayLearner(ranks, self._config)

    async def start_reward_service(self, log_folder: Path) -> tuple[RemoteActor, ServiceEndpoint]:
        """Start the reward service on a CPU node, where there is one; returns when it is ready to score.

        Raises MachineError when no node takes it, ServiceStartError when it does not start there.
        """
        reward, deployment = self._config.reward, self._config.reward.deployment
        assert self.placement is not None, "connect() comes first"
        assert isinstance(deployment, ActorDeployment)
        options: dict[str, Any] = {"num_cpus": deployment.num_cpus, "resources": deployment.resources}
        if (node := preferred_node(alive_nodes(), deployment)) is not None:
            # Soft by the public rule waits for a node that is full; with the private one another is taken.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(
                node.node_id, soft=True, _spill_on_unavailable=True
            )
        environment = {"env_vars": actor_environment(self.placement, RewardServiceActor)}
        actor_class = ray.remote(RewardServiceActor).options(
            name="reward-0", max_concurrency=4, runtime_env=environment, **options
        )
        actor = RemoteActor("reward-0", actor_class.remote("reward-0", own_node))
        self._actors.append(actor)
        endpoint = await start_on(actor, reward, driver_node_id=own_node().node_id, log_folder=log_folder)
        return actor, endpoint

    @staticmethod
    async def _start_all(
        actors: Sequence[RemoteActor],
        timeout_s: float,
        arguments: Callable[[int], tuple[Any, ...]] = lambda index: (),
    ) -> None:
        async def start(index: int, actor: RemoteActor) -> None:
            actor.where = await actor.call("start", *arguments(index), timeout_s=timeout_s)

        await gather_or_cancel(start(index, actor) for index, actor in enumerate(actors))

    async def shutdown(self, *, timeout_s: float = 20.0) -> None:
        """End the actors, then Ray if it was started here. Never raises: what does not end in time is killed."""
        goodbyes = [actor.call("shutdown", timeout_s=timeout_s) for actor in self._actors]
        await asyncio.gather(*goodbyes, return_exceptions=True)
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors.clear()
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
        ray.shutdown()


@contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and dies of it; whoever asked for it before the block has it again after."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    if threading.current_thread() is threading.main_thread():  # no other may
        for number, handler in kept.items():
            signal.signal(number, handler)


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
