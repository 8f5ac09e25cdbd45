"""Ray: starts or joins it, puts the rooms' plain classes there as actors, and ends them.

Actors have readable names in the dashboard (`rollout-0`, `learner-0`) and publish their gauges as node metrics with the
prefix `rlvr_`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, closing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestration.cluster.actors import Hosted, LearnerActor, RolloutActor, actor_environment
from orchestration.cluster.bundles import Bundles
from orchestration.cluster.calls import Host, RemoteActor, log_folder, session_folder
from orchestration.cluster.gauges import RayGauges
from orchestration.cluster.generator import RayMember
from orchestration.cluster.joining import join_ray, leave_ray
from orchestration.cluster.learner import RayLearner
from orchestration.cluster.local_learner import learner_settings
from orchestration.cluster.nodes import (
    alive_nodes,
    dead_ray_processes,
    end_process,
    own_node,
    own_node_id,
    signs_of_gpus,
    sized_for_nodes,
)
from orchestration.cluster.playing.actor import EnvironmentActor
from orchestration.cluster.playing.hosts import EnvironmentHosts
from orchestration.cluster.reward.actor import RewardServiceActor, ServiceEndpoint
from orchestration.cluster.reward.deployment import actor_client, new_restarts, preferred_node, start_on
from orchestration.cluster.reward.keeper import RewardKeeper
from orchestration.cluster.upkeep.heartbeat import BEAT_S
from orchestration.cluster.upkeep.pool import RolloutPool
from orchestration.cluster.upkeep.restarts import Restarts
from orchestration.cluster.upkeep.sessions import remove_session
from orchestration.cluster.upkeep.whereabouts import end_here, end_ray_here
from orchestration.concurrency import at_most, gather_or_cancel
from orchestration.errors import MachineError
from orchestration.machine.placement import (
    Placement,
    PlacementMode,
    Slot,
    effective_rollout,
    place,
    refuse_unseen_gpus,
)
from orchestration.models.here import named_anywhere
from orchestration.run.reporter import Note
from orchestration.settings.config import RunConfig
from orchestration.settings.rewards import ActorDeployment

Engines = TypeVar("Engines")
Ranks = TypeVar("Ranks")

_KILL_S = 30.0
"""What the end of one actor may take."""


class Cluster:
    """A Ray cluster, joined or started here, with this run's actors in it."""

    def __init__(
        self,
        config: RunConfig,
        *,
        run_id: str,
        note: Note = lambda level, message: None,
        groups: MutableMapping[str, int] | None = None,
    ) -> None:
        self._config, self._run_id, self._note = named_anywhere(config), run_id, note
        self._groups = groups
        self._bundles: Bundles | None = None
        self._actors: list[RemoteActor[Any]] = []
        self._ranks: Sequence[RemoteActor[LearnerActor]] = ()
        self._watched: list[RolloutPool[RayMember] | RayLearner] = []
        self._ray_watch: asyncio.Task[None] | None = None
        self.placement: Placement | None = None
        self.dashboard_url: str | None = None

    def connect(self) -> Placement:
        """Join `ray_address` or start Ray here, and reserve the GPUs.

        Raises:
            MachineError: Ray does not start or join, or there are too few GPUs.
        """
        config = self._config
        context = join_ray(config, namespace=f"rlvr-{self._run_id}")
        self.dashboard_url = context.dashboard_url or None
        num_gpus = int(ray.cluster_resources().get("GPU", 0))
        refuse_unseen_gpus(config, num_gpus=num_gpus, signs=signs_of_gpus(joined=config.ray_address is not None))
        self._config = config = sized_for_nodes(config, num_gpus=num_gpus)
        self.placement = place(config, num_gpus=num_gpus)
        self._bundles = Bundles(self.placement, run_id=self._run_id, dashboard_url=self.dashboard_url)
        self._bundles.reserve()
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

    def _create(
        self, actor_class: type[Host], slot: Slot, life: int, *args: Any, max_concurrency: int
    ) -> RemoteActor[Host]:
        assert self._bundles is not None, "connect() comes first"
        if dead := dead_ray_processes():
            raise _ended(dead)  # Ray would wait a minute for itself, and all of this process with it
        name = _named(slot.name, life)
        options: dict[str, Any] = {
            "name": name,
            "num_gpus": slot.num_gpus,
            "num_cpus": slot.num_cpus,
            "resources": dict(slot.marks),
            "max_concurrency": max_concurrency,
            **self._environment(),
            **self._bundles.options(slot),
        }
        actor: RemoteActor[Host] = RemoteActor(
            name, ray.remote(actor_class).options(**options).remote(slot.name, *args)
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

    async def start_rollout(self) -> RolloutPool[RayMember]:
        """Start all engines that there is room for; returns when each can generate."""
        placement = self._placed()
        rollout = effective_rollout(self._config.rollout, placement)

        def make(index: int, life: int) -> RayMember:
            settings = {
                "config": rollout,
                "device": placement.device,
                "run_id": self._run_id,
                "seed": self._config.seed * 1000 + index,
            }
            slot = placement.rollout[index]
            actor = self._create(
                RolloutActor,
                slot,
                life,
                RayGauges,
                own_node_id,
                ray.util.get_node_ip_address,
                self._config,
                settings,
                max_concurrency=10_000,
            )
            return RayMember(actor, rollout, self._end)

        pool = RolloutPool(
            make,
            num_workers=len(placement.rollout),
            least=placement.least_workers,
            has_room=self._has_room if placement.least_workers is not None else None,
            stall_timeout_s=rollout.stall_timeout_s,
            new_restarts=self._new_restarts,
            retry_io_s=self._config.retry_io_s,
            max_num_seqs=rollout.max_num_seqs,
            note=self._note,
            counts=self._groups,
        )
        self._watched.append(pool)
        self._watch_ray()
        await pool.start()
        return pool

    async def _has_room(self, index: int) -> bool:
        assert self._bundles is not None
        return await self._bundles.has(self._placed().rollout[index])

    async def start_learner(self) -> RayLearner:
        """Start all ranks; returns when they have met and hold the model."""
        self._placed()
        learner = RayLearner(
            self._start_ranks, self._end_ranks, self._config, restarts=self._new_restarts(), note=self._note
        )
        self._watched.append(learner)
        self._watch_ray()
        await learner.start()
        return learner

    async def _start_ranks(self, life: int) -> Sequence[RemoteActor[LearnerActor]]:
        placement = self._placed()
        ranks = self._ranks = [
            self._create(
                LearnerActor, slot, life, RayGauges, own_node_id, ray.util.get_node_ip_address, max_concurrency=16
            )
            for slot in placement.learner
        ]
        timeout_s = self._config.learner.start_timeout_s
        for rank, process in zip(
            ranks,
            await gather_or_cancel(rank.call(LearnerActor.here, timeout_s=timeout_s)() for rank in ranks),
            strict=True,
        ):
            rank.process, rank.where = process, str(process)
        address, port = await ranks[0].call(LearnerActor.endpoint, timeout_s=timeout_s)()
        settings = {
            "world_size": len(ranks),
            "master_addr": address,
            "master_port": port,
            **learner_settings(self._config, device=placement.device),
        }
        await gather_or_cancel(
            rank.call(LearnerActor.start, timeout_s=timeout_s)(self._config, {**settings, "rank": index})
            for index, rank in enumerate(ranks)
        )
        return ranks

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
        with closing(ranks):  # never begun where the engines fail
            return await engines, await ranks

    async def _end_ranks(self) -> None:
        await asyncio.gather(*(self._end(rank) for rank in self._ranks))

    async def _end(self, actor: RemoteActor[Any]) -> None:
        """End an actor's processes, whatever state they are in. Never raises, and takes bounded time."""
        if actor in self._actors:
            self._actors.remove(actor)
        await at_most(_KILL_S, lambda: ray.kill(actor.handle))
        if actor.process is not None:
            await end_process(actor.process, timeout_s=_KILL_S)

    def _placed(self) -> Placement:
        assert self.placement is not None, "connect() comes first"
        return self.placement

    def _new_restarts(self) -> Restarts:
        return new_restarts(self._config)

    def _watch_ray(self) -> None:
        if self._ray_watch is None:
            self._ray_watch = asyncio.create_task(self._until_ray_dies(), name="watch-ray")

    async def _until_ray_dies(self) -> None:
        """What Ray itself is made of on this node cannot be replaced: when it dies, all that waits hears why."""
        while not (dead := dead_ray_processes()):  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(BEAT_S)
        error = _ended(dead)
        for each in self._watched:
            if isinstance(each, RayLearner) and not any("raylet" in one for one in dead):
                each.start_no_more(error)  # without the GCS it still answers, and its state can be saved
            else:
                each.fail(error)

    def reward_client(self, log_folder: Path) -> AbstractAsyncContextManager[RewardKeeper]:
        """A client of the reward service as an actor, on a CPU node where there is one, kept alive as long as the block
        lasts.

        Raises MachineError when no node takes it, ServiceStartError when it does not start there.
        """
        start = partial(self._start_reward_service, log_folder)
        return actor_client(self._config, start, self._end, note=self._note)

    async def _start_reward_service(
        self, log_folder: Path, life: int
    ) -> tuple[RemoteActor[RewardServiceActor], ServiceEndpoint]:
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
            name=_named("reward-0", life), max_concurrency=4, **self._environment(), **options
        )
        actor: RemoteActor[RewardServiceActor] = RemoteActor("reward-0", actor_class.remote("reward-0", own_node))
        self._actors.append(actor)
        endpoint = await start_on(actor, self._config, driver_node_id=own_node().node_id, log_folder=log_folder)
        actor.process = await actor.call(RewardServiceActor.process, timeout_s=self._config.reward.start_timeout_s)()
        self._note("info", f"the reward service is on {actor.where}")
        return actor, endpoint

    def environment_hosts(self) -> EnvironmentHosts | None:
        """Actors for the environments of the run's task; None where they are to be in this process."""
        if not self._config.episodes.num_hosts:
            return None
        return EnvironmentHosts(
            self._start_environments,
            self._end,
            num_hosts=self._config.episodes.num_hosts,
            start_timeout_s=self._config.rollout.start_timeout_s,
            call_timeout_s=self._config.episodes.step_timeout_s,
            new_restarts=self._new_restarts,
            note=self._note,
        )

    def _start_environments(self, index: int, life: int) -> RemoteActor[EnvironmentActor]:
        name, nodes = f"environments-{index}", self._config.episodes.host_nodes
        options = ray.remote(EnvironmentActor).options(
            name=_named(name, life),
            num_cpus=0,  # they wait most of the time; how many there are is the setting's to say
            resources={nodes: 0.001} if nodes else {},
            scheduling_strategy="SPREAD",
            max_concurrency=10_000,
            **self._environment(),
        )
        actor: RemoteActor[EnvironmentActor] = RemoteActor(name, options.remote(name, own_node_id, self._config))
        self._actors.append(actor)
        return actor

    async def shutdown(self, *, timeout_s: float = 20.0) -> None:
        """End the actors, then Ray if it was started here. Never raises: what does not end in time is killed."""
        session = session_folder()  # what actors say at their end is told nobody
        for pool in self._watched:
            if isinstance(pool, RolloutPool):
                await pool.close()
        if self._ray_watch is not None:
            self._ray_watch.cancel()
        actors = list(self._actors)
        goodbyes = [actor.call(Hosted.shutdown, timeout_s=timeout_s)() for actor in actors]
        heard = await asyncio.gather(*goodbyes, return_exceptions=True)
        silent = [actor for actor, answer in zip(actors, heard, strict=True) if isinstance(answer, BaseException)]
        await asyncio.gather(*(self._end(actor) for actor in silent))
        self._actors.clear()  # with its driver Ray ends the others, and tells of none as of an accident
        await at_most(timeout_s, self._leave)
        if self._config.ray_address is None:  # another's nodes on this host may be children of this process, too
            await asyncio.to_thread(end_ray_here)
        await asyncio.to_thread(end_here, None)
        if session is not None:
            await asyncio.to_thread(remove_session, session)

    def _leave(self) -> None:
        if self._bundles is not None:
            self._bundles.free()
        leave_ray()


def _ended(dead: Sequence[str]) -> MachineError:
    return MachineError(
        f"Ray's own {' and '.join(dead)} on this host: the run cannot go on without it; the same run_dir goes on "
        f"from what is kept. Its log is in {log_folder()}"
    )


def _named(name: str, life: int) -> str:
    """Of an actor; Ray may still hold the name of the one before."""
    return name if life == 1 else f"{name}.{life}"
