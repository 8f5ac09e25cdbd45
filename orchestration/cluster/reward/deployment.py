"""The reward service of a run: what it is told, which node it belongs on, and the clients of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from orchestration.cluster.reward.actor import LOG_NAME, ClusterNode, RewardServiceActor, ServiceEndpoint, ServiceOrder
from orchestration.cluster.reward.beside import client_for
from orchestration.cluster.reward.keeper import RewardKeeper, Service, kept
from orchestration.cluster.upkeep.restarts import Restarts
from orchestration.concurrency import in_thread
from orchestration.errors import ConfigError, MachineError, RemoteTimeoutError, WorkerDiedError
from orchestration.run.reporter import Note
from orchestration.run.rewards import service_settings
from orchestration.settings.config import RunConfig
from orchestration.settings.rewards import ActorDeployment, RewardConfig
from reward_service.child import RunningService, begin_in_subprocess
from reward_service.clients.asynchronous import RewardClient
from reward_service.settings import ServiceSettings

_STOP_S = 15.0  # a service that did not get ready is ended
_POLL_S = 0.2
_WATCH_S = 30.0
_WATCH_TIMEOUT_S = 180.0  # its node may be busy, but not for minutes


Params = ParamSpec("Params")
Result = TypeVar("Result")


class RemoteService(Protocol):
    """The actor that holds the service, as `calls.RemoteActor` of it or in a test."""

    where: str

    def call(
        self, method: Callable[Concatenate[RewardServiceActor, Params], Result], *, timeout_s: float
    ) -> Callable[Params, Coroutine[Any, Any, Result]]: ...


Actor = TypeVar("Actor", bound=RemoteService)


def preferred_node(nodes: Iterable[ClusterNode], deployment: ActorDeployment) -> ClusterNode | None:
    """The node on which the service takes nothing from models.

    Returns:
        Of the nodes with room the one without GPUs that has the most cores; None when all that have room have GPUs.

    Raises:
        MachineError: no node could ever take the service, and Ray would wait for one.
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


async def start_on(actor: RemoteService, run: RunConfig, *, driver_node_id: str, log_folder: Path) -> ServiceEndpoint:
    """Start the service in an actor that has been asked for; returns when it is ready to score.

    Args:
        driver_node_id: the node of this process: an actor there writes the service's log into `log_folder`.

    Returns:
        Where it answers. The actor's `where` is known from then on.

    Raises:
        MachineError: no node takes the actor.
        ServiceStartError: the service does not start there.
    """
    config, deployment = run.reward, run.reward.deployment
    assert isinstance(deployment, ActorDeployment)
    try:
        actor.where = await actor.call(RewardServiceActor.where, timeout_s=config.start_timeout_s)()
    except RemoteTimeoutError as error:
        wanted = _listed({"CPU": deployment.num_cpus, **deployment.resources})
        raise MachineError(
            f"no node had {wanted} free for the reward service within reward.start_timeout_s="
            f"{config.start_timeout_s:g} s: another job may hold it; lower reward.deployment.num_cpus, or wait longer"
        ) from error
    order = _order(run, deployment.num_cpus, driver_node_id, log_folder)
    return await actor.call(RewardServiceActor.start, timeout_s=config.start_timeout_s + _STOP_S)(order)


def _order(run: RunConfig, num_cpus: float, driver_node_id: str, log_folder: Path) -> ServiceOrder:
    return ServiceOrder(
        settings=service_settings(run),
        num_cpus=num_cpus,
        driver_node_id=driver_node_id,
        log_folder=str(log_folder.absolute()),
        start_timeout_s=run.reward.start_timeout_s,
    )


def reward_client(
    run: RunConfig,
    log_folder: Path,
    *,
    audit_log: Path | None = None,
    note: Note = lambda level, message: None,
) -> AbstractAsyncContextManager[RewardKeeper]:
    """A client of the configured service, or of one started on loopback and kept alive as long as the block lasts.

    Args:
        log_folder: where a service that is started here writes its log.
        audit_log: where it records its decisions; None: where its settings say.

    Raises:
        ConfigError: the URL is malformed, or the file with the key cannot be read.
        RewardServiceError, ServiceStartError: nothing healthy answers.
    """

    async def start(life: int) -> Service:
        if run.reward.url is not None:
            return ForeignService(await _ready_client(run.reward, run.reward.url, _api_key(run.reward)))
        settings = ServiceSettings.model_validate(service_settings(run, audit_log=audit_log) | {"port": 0})
        service, wait = begin_in_subprocess(
            settings, log_path=log_folder / LOG_NAME, timeout_s=run.reward.start_timeout_s
        )
        try:
            await in_thread(wait)
            return LocalService(service, await _ready_client(run.reward, service.url, None))
        except BaseException:
            await asyncio.to_thread(service.stop, 1.0)
            raise

    return kept(RewardKeeper(start, run.reward, restarts=new_restarts(run), note=note))


def actor_client(
    run: RunConfig,
    start_actor: Callable[[int], Coroutine[Any, Any, tuple[Actor, ServiceEndpoint]]],
    end_actor: Callable[[Actor], Awaitable[None]],
    *,
    note: Note = lambda level, message: None,
) -> AbstractAsyncContextManager[RewardKeeper]:
    """A client of a service that an actor holds, kept alive as long as the block lasts.

    Args:
        start_actor: starts the actor, for its so-manieth life, and the service in it.
        end_actor: ends it, whatever state it is in; never raises.
    """

    async def start(life: int) -> Service:
        actor, endpoint = await start_actor(life)
        return ActorService(actor, await _ready_client(run.reward, endpoint.url, endpoint.api_key), end_actor)

    return kept(RewardKeeper(start, run.reward, restarts=new_restarts(run), note=note))


class ForeignService:
    """A service that somebody else runs."""

    def __init__(self, client: RewardClient) -> None:
        self.client = client

    async def ended(self) -> str:
        await asyncio.Event().wait()
        raise AssertionError

    async def end(self, *, in_order: bool) -> None:
        await self.client.aclose()


class LocalService:
    """A service that is a child of this process."""

    def __init__(self, service: RunningService, client: RewardClient) -> None:
        self._service, self.client = service, client

    async def ended(self) -> str:
        process = self._service.process
        while (code := process.poll()) is None:  # noqa: ASYNC110  # a thread that waits could not be ended
            await asyncio.sleep(_POLL_S)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"the reward service (pid {process.pid}) {how}; its log is {self._service.log_path}"

    async def end(self, *, in_order: bool) -> None:
        if not in_order:
            self._service.process.kill()
        await self.client.aclose()
        await asyncio.to_thread(self._service.stop)


class ActorService(Generic[Actor]):
    """A service that an actor holds."""

    def __init__(self, actor: Actor, client: RewardClient, end_actor: Callable[[Actor], Awaitable[None]]) -> None:
        self._actor, self.client, self._end_actor = actor, client, end_actor

    async def ended(self) -> str:
        while True:
            try:
                reason = await self._actor.call(RewardServiceActor.watch, timeout_s=_WATCH_TIMEOUT_S)(_WATCH_S)
            except (WorkerDiedError, RemoteTimeoutError) as error:
                return str(error)
            if reason is not None:
                return f"the reward service on {self._actor.where} ended: {reason}"

    async def end(self, *, in_order: bool) -> None:
        await self.client.aclose()
        if in_order:
            with suppress(WorkerDiedError, RemoteTimeoutError):
                await self._actor.call(RewardServiceActor.shutdown, timeout_s=_STOP_S)()
                return  # the rest is the cluster's end
        await self._end_actor(self._actor)


def new_restarts(run: RunConfig) -> Restarts:
    """The run's budget for one part of it."""
    return Restarts(limit=run.max_restarts, window_s=run.restart_window_s)


def _api_key(config: RewardConfig) -> str | None:
    if config.api_key_file is None:
        return config.api_key
    try:
        return config.api_key_file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"reward.api_key_file={str(config.api_key_file)!r} cannot be read: {error}; put the service's key there"
        ) from error


async def _ready_client(config: RewardConfig, url: str, api_key: str | None) -> RewardClient:
    try:
        client = client_for(config, url, api_key)
    except ValueError as error:
        raise ConfigError(f"reward.url, reward.api_key: {error}") from error  # which shows no credentials of a URL
    try:
        await client.health(timeout_s=config.timeout_s)
    except BaseException:
        await client.aclose()
        raise
    return client
