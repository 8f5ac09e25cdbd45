"""The reward service of a run: what it is told, which node it belongs on, a client of it, and what if it ends."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from learner.types import ScoredCompletion
from orchestration.cluster.reward_actor import LOG_NAME, ClusterNode, ServiceEndpoint, ServiceOrder
from orchestration.errors import ConfigError, MachineError, RemoteTimeoutError, WorkerDiedError
from orchestration.run.evaluation import LENIENT, STRICT
from orchestration.run.ports import Scorer
from orchestration.settings.rewards import ActorDeployment, RewardConfig, RewardSpec
from orchestration.types import Problem
from reward_service.child import start_in_subprocess
from reward_service.clients.asynchronous import RewardClient
from reward_service.commands import read_settings
from reward_service.errors import ServiceStartError
from reward_service.settings import ServiceSettings
from rollout_server.types import Completion

JUDGES = (RewardSpec(name=STRICT), RewardSpec(name=LENIENT))
"""What decides in evaluations."""

_OURS = {"host", "port", "keys_file", "ssl_certfile", "ssl_keyfile", "rewards"}
_STOP_S = 15.0  # a service that did not get ready is ended
_WATCH_S = 30.0
_WATCH_TIMEOUT_S = 180.0  # its node may be busy, but not for minutes


class Remote(Protocol):
    """An actor that can be called."""

    where: str

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any: ...


def service_settings(config: RewardConfig) -> dict[str, Any]:
    """Settings for a service that the run starts: those of `settings_file`, and only the rewards that the run needs,
    so that it starts without loading the libraries of others.

    Raises ConfigError naming the file.
    """
    file = None if config.settings_file is None else str(config.settings_file)
    if file == "-":
        raise ConfigError("reward.settings_file='-' is not a file: a run does not read standard input")
    try:
        settings = read_settings(argparse.Namespace(settings=file, settings_words=(), host=None, port=None))
    except ServiceStartError as error:
        raise ConfigError(f"reward.settings_file={file!r}: {error}") from error
    names = dict.fromkeys(spec.name for spec in (*config.rewards, *JUDGES))
    return settings.model_dump(exclude_unset=True, exclude=_OURS) | {"rewards": tuple(names)}


def preferred_node(nodes: Iterable[ClusterNode], deployment: ActorDeployment) -> ClusterNode | None:
    """The node without GPUs that has the most cores, of those with room; None when all that have room have GPUs.

    Raises MachineError when no node could ever take the service: Ray would wait for one.
    """
    wanted = {"CPU": deployment.num_cpus, **deployment.resources}
    nodes = sorted(nodes, key=lambda node: node.node_id)
    fitting = [node for node in nodes if all(node.resources.get(name, 0) >= n for name, n in wanted.items())]
    if not fitting:
        offers = "; ".join(
            f"{node.address}: {_listed({n: node.resources.get(n, 0) for n in wanted})}" for node in nodes
        )
        raise MachineError(
            f"reward.deployment asks for a node with {_listed(wanted)}, and the cluster has {offers or 'no nodes'}; "
            f"lower reward.deployment.num_cpus or change reward.deployment.resources"
        )
    without_gpus = [node for node in fitting if not node.resources.get("GPU")]
    return max(without_gpus, key=lambda node: node.resources["CPU"], default=None)


def _listed(resources: dict[str, float]) -> str:
    return ", ".join(f"{number:g} {name}" for name, number in resources.items())


async def start_on(actor: Remote, config: RewardConfig, *, driver_node_id: str, log_folder: Path) -> ServiceEndpoint:
    """Start the service in an actor that has been asked for; returns when it is ready to score.

    Raises MachineError when no node takes the actor, ServiceStartError when the service does not start there.
    """
    deployment = config.deployment
    assert isinstance(deployment, ActorDeployment)
    try:
        actor.where = await actor.call("where", timeout_s=config.start_timeout_s)
    except RemoteTimeoutError as error:
        wanted = _listed({"CPU": deployment.num_cpus, **deployment.resources})
        raise MachineError(
            f"no node had {wanted} free for the reward service within reward.start_timeout_s="
            f"{config.start_timeout_s:g} s: another job may hold it; lower reward.deployment.num_cpus, or wait longer"
        ) from error
    order = _order(config, deployment.num_cpus, driver_node_id, log_folder)
    endpoint: ServiceEndpoint = await actor.call("start", order, timeout_s=config.start_timeout_s + _STOP_S)
    return endpoint


def _order(config: RewardConfig, num_cpus: float, driver_node_id: str, log_folder: Path) -> ServiceOrder:
    return ServiceOrder(
        settings=service_settings(config),
        num_cpus=num_cpus,
        driver_node_id=driver_node_id,
        log_folder=str(log_folder.absolute()),
        start_timeout_s=config.start_timeout_s,
    )


@asynccontextmanager
async def reward_client(config: RewardConfig, log_folder: Path) -> AsyncIterator[RewardClient]:
    """A client of the configured service, or of one started on loopback for as long as the block lasts.

    Raises ConfigError for a malformed URL; RewardServiceError or ServiceStartError when nothing healthy answers.
    """
    if config.url is not None:
        async with _client(config, config.url, _api_key(config)) as client:
            yield client
        return
    settings = ServiceSettings.model_validate(service_settings(config) | {"port": 0})
    service = await asyncio.to_thread(
        start_in_subprocess, settings, log_path=log_folder / LOG_NAME, timeout_s=config.start_timeout_s
    )
    try:
        async with _client(config, service.url, None) as client:
            yield client
    finally:
        await asyncio.to_thread(service.stop)


def _api_key(config: RewardConfig) -> str | None:
    if config.api_key_file is None:
        return config.api_key
    try:
        return config.api_key_file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"reward.api_key_file={str(config.api_key_file)!r} cannot be read: {error}; put the service's key there"
        ) from error


@asynccontextmanager
async def actor_client(
    config: RewardConfig, actor: Remote, endpoint: ServiceEndpoint
) -> AsyncIterator[tuple[RewardClient, asyncio.Task[None]]]:
    """A client of the service that an actor holds, and a task that fails when either of them has ended."""
    watch = asyncio.create_task(_until_it_ends(actor))
    try:
        async with _client(config, endpoint.url, endpoint.api_key) as client:
            yield client, watch
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _until_it_ends(actor: Remote) -> None:
    while True:
        reason = await actor.call("watch", _WATCH_S, timeout_s=_WATCH_TIMEOUT_S)
        if reason is not None:
            raise WorkerDiedError(f"the reward service on {actor.where} ended: {reason}")


@asynccontextmanager
async def _client(config: RewardConfig, url: str, api_key: str | None) -> AsyncIterator[RewardClient]:
    try:
        client = RewardClient(
            url,
            timeout_s=config.timeout_s,
            deadline_s=config.deadline_s,
            max_concurrency=config.max_concurrency,
            api_key=api_key,
        )
    except ValueError as error:
        raise ConfigError(f"reward.url={url!r}: {error}") from error
    async with client:
        await client.health(timeout_s=config.timeout_s)
        yield client


class WatchedScorer:
    """Scores by `inner` until `watch` fails: then every call fails with what it says, and does not try any longer."""

    def __init__(self, inner: Scorer, watch: asyncio.Task[None]) -> None:
        self._inner, self._watch = inner, watch

    @property
    def reward_names(self) -> Sequence[str]:
        return self._inner.reward_names

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        async def score() -> Sequence[ScoredCompletion]:
            return await self._inner.score(problem, prompt_text, completions)

        work = asyncio.create_task(score())
        try:
            await asyncio.wait({work, self._watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._watch.result()  # raises
            return await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
