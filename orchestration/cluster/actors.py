"""What Ray hosts: thin shells around the rooms' plain classes, which load heavy libraries only in their own process.

Nothing here imports ray; what an actor needs of it is handed in.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from learner.config import CPU_ENVIRONMENT
from learner.types import ScoredGroup, UpdateMetrics
from orchestration.cluster.hosted_rank import HostedRank, Rank, fork_server_here
from orchestration.cluster.upkeep.lines import Endpoint, Listener
from orchestration.cluster.upkeep.whereabouts import Whereabouts, hear_sigterm
from orchestration.concurrency import kept_on
from orchestration.models.here import model_here
from orchestration.settings.config import RunConfig
from orchestration.types import BuiltPrompt
from rollout_server.types import (
    AdapterPayload,
    AdapterProbe,
    Completion,
    EngineStep,
    Prompt,
    PublishReport,
    SamplingParams,
)

if TYPE_CHECKING:
    from orchestration.cluster.reward.beside import BesideScorer
    from rollout_server.worker import RolloutWorker

Gauges = Callable[[str], Callable[[Mapping[str, float]], None]]
"""Makes an actor's metrics sink out of its name."""
NodeId = Callable[[], str]
"""Ray's name of the calling process' node."""
NodeIp = Callable[[], str]
"""The address by which others reach it."""
Result = TypeVar("Result")


class Hosted(Protocol):
    """What every actor's class has."""

    def shutdown(self) -> object:
        """End what it holds; sync or async."""
        ...


class RolloutActor:
    """Hosts a rollout worker; an async actor, so requests overlap."""

    def __init__(
        self,
        name: str,
        gauges: Gauges,
        node_id: NodeId,
        node_ip: NodeIp,
        config: RunConfig,
        settings: Mapping[str, Any],
    ) -> None:
        self._name, self._gauges, self._node_id, self._node_ip = name, gauges(name), node_id, node_ip
        self._config, self._settings = config, settings
        self._started: RolloutWorker | None = None
        self._probes: dict[int, asyncio.Future[AdapterProbe]] = {}
        self._scorer: BesideScorer | None = None
        self._num_generating = self._num_scoring = self._num_waits = 0
        self._listener = Listener(self.generate, self.generate_scored, self.tell_probe, self.heartbeat)

    def __repr__(self) -> str:  # Ray puts it in front of log lines
        return self._name

    @property
    def _worker(self) -> RolloutWorker:
        assert self._started is not None, "start() comes first"
        return self._started

    async def here(self) -> Whereabouts:
        return Whereabouts.here(self._node_id())

    async def start(self) -> None:
        from rollout_server.worker import RolloutWorker  # loads torch and vllm: only in this process

        hear_sigterm()  # vLLM ends its processes by it
        model = await asyncio.to_thread(model_here, self._config, device=self._settings["device"], served=True)
        self._started = RolloutWorker(
            name=self._name, metrics_sink=self._gauges, model_path=str(model), **self._settings
        )
        await self._started.start()

    async def listen(self) -> Endpoint | None:
        """Where groups can be asked for without Ray; None: nowhere."""
        return await self._listener.listen(self._node_ip())

    async def generate(self, asked: bytes) -> bytes:
        """Of a pickled prompt and how it is sampled the pickled completions: what Ray pickles itself, object by object,
        takes five times as long."""
        prompt, sampling = pickle.loads(asked)
        return pickle.dumps(await self._generate(prompt, sampling), pickle.HIGHEST_PROTOCOL)

    async def generate_scored(self, asked: bytes) -> bytes:
        """As `generate`, of what is asked with the problem, its prompt's text, and where the service is: a pickled
        `Drawn`. A dead service costs this actor's groups their scores from here, and nothing else."""
        prompt, sampling, problem, text, address = pickle.loads(asked)
        completions_G = await self._generate(prompt, sampling)
        self._num_scoring += 1
        try:
            drawn = await self._beside.score(
                BuiltPrompt(problem=problem, prompt=prompt, text=text), completions_G, address
            )
        finally:
            self._num_scoring -= 1
        return pickle.dumps(drawn, pickle.HIGHEST_PROTOCOL)

    async def _generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        self._num_generating += 1
        try:
            return await self._worker.generate(prompt, sampling)
        finally:
            self._num_generating -= 1

    @property
    def _beside(self) -> BesideScorer:
        if self._scorer is None:
            from orchestration.cluster.reward.beside import BesideScorer  # an HTTP client, which ranks do without

            self._scorer = BesideScorer(self._config)
        return self._scorer

    async def publish(self, payload: AdapterPayload) -> PublishReport:
        """As `rollout_server.worker.RolloutWorker.publish`, proven by what `tell_probe` tells before or meanwhile."""
        probe = self._probe_of(payload.version) if payload.probe_token_ids else None
        return await self._worker.publish(payload, probe)

    async def tell_probe(self, probe: AdapterProbe) -> None:
        """What the learner says of a version that is being published."""
        told = self._probe_of(probe.version)
        if not told.done():
            told.set_result(probe)

    def _probe_of(self, version: int) -> asyncio.Future[AdapterProbe]:
        self._probes = {number: told for number, told in self._probes.items() if number >= version}
        return self._probes.setdefault(version, asyncio.get_running_loop().create_future())

    async def heartbeat(self) -> int:
        """Grows with every step of the engine; where all that is under way waits for scores, by itself."""
        self._num_waits += bool(self._num_scoring and not self._num_generating)
        return await self._worker.heartbeat() + self._num_waits

    async def recent_steps(self) -> Sequence[EngineStep]:
        return await self._worker.recent_steps()

    async def shutdown(self) -> None:
        if self._started is not None:
            await self._started.shutdown()


class LearnerActor:
    """Hosts one learner rank. Its work is done one call after the other, in one thread; the heartbeat is answered
    meanwhile."""

    def __init__(self, name: str, gauges: Gauges, node_id: NodeId, node_ip: NodeIp) -> None:
        self._name, self._node_id, self._node_ip = name, node_id, node_ip
        self._gauges = gauges(name)
        self._rank: Rank | None = None
        self._steps = 0
        self._thread = ThreadPoolExecutor(1, "rank")
        self._kept_port: socket.socket | None = None
        self._update: asyncio.Future[UpdateMetrics] | None = None
        self._ahead: tuple[asyncio.Future[AdapterPayload], asyncio.Future[AdapterProbe]] | None = None
        """The adapter of the last update and its probe, which every update is asked for next: begun before it is."""

    def __repr__(self) -> str:
        return self._name

    async def here(self) -> Whereabouts:
        return Whereabouts.here(self._node_id())

    async def endpoint(self) -> tuple[str, int]:
        """An address of this host and a port of it for the ranks' rendezvous, which is kept for it until they meet: it
        takes the time of loading a model."""
        self._kept_port = socket.socket()
        self._kept_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that the rendezvous may listen on it
        self._kept_port.bind(("", 0))
        return self._node_ip(), int(self._kept_port.getsockname()[1])

    async def start(self, config: RunConfig, settings: Mapping[str, Any]) -> None:
        try:
            await self._in_turn(lambda: self._start(config, settings))
        finally:
            if self._kept_port is not None:
                self._kept_port.close()

    def _start(self, config: RunConfig, settings: Mapping[str, Any]) -> None:
        model = model_here(config, device=settings["device"], served=False)
        arguments = {"model_path": str(model), **settings, "on_progress": self._follow}
        if settings["device"] == "cpu" and (address := fork_server_here()) is not None:
            self._rank = HostedRank(address, **arguments)
        else:
            from learner.worker import LearnerRank  # loads torch and deepspeed: only in this process

            self._rank = LearnerRank(**arguments)
        self._rank.start()

    async def notes(self) -> tuple[str, ...]:
        """What a user should know of the started model, as `learner.worker.LearnerRank.notes`."""
        return await self._in_turn(self._started.notes)

    async def heartbeat(self) -> int:
        """A number that grows with every pass of an update and every file of a checkpoint."""
        return self._steps

    async def update(self, batch: bytes, max_staleness: int, step: int) -> UpdateMetrics:
        """One optimizer step of pickled groups, as `learner.worker.LearnerRank.update`; its speed is published as
        gauges."""
        groups: Sequence[ScoredGroup] = pickle.loads(batch)
        self._ahead = None
        self._update = self._begun(lambda: self._started.update(groups, max_staleness=max_staleness, step=step))
        metrics = await kept_on(self._update)  # that is done when the thread is, and not before
        self._ahead = self._begun(self._started.export_adapter), self._begun(self._started.probe_adapter)
        seconds = metrics.num_tokens / metrics.tokens_per_s if metrics.tokens_per_s else 0.0
        self._gauges(
            {
                "learner_step": metrics.step,
                "learner_tokens_per_s": metrics.tokens_per_s or 0.0,
                "learner_distinct_tokens_per_s": metrics.num_distinct_tokens / seconds if seconds else 0.0,
            }
        )
        return metrics

    async def export_adapter(self) -> tuple[int, AdapterPayload]:
        """The version, and the adapter as `learner.worker.LearnerRank.export_adapter`."""
        begun = self._ahead[0] if self._ahead is not None else self._begun(self._started.export_adapter)
        payload = await kept_on(begun)
        return payload.version, payload

    async def probe_adapter(self) -> AdapterProbe:
        """As `learner.worker.LearnerRank.probe_adapter`."""
        begun = self._ahead[1] if self._ahead is not None else self._begun(self._started.probe_adapter)
        return await kept_on(begun)

    async def save_checkpoint(self, folder: str, files: Mapping[str, bytes]) -> None:
        await self._in_turn(lambda: self._started.save_checkpoint(folder, files))

    async def load_checkpoint(self, folder: str) -> int:
        self._ahead = None
        return await self._in_turn(lambda: self._started.load_checkpoint(folder))

    async def shutdown(self) -> None:
        """In the middle of an update, which can take long, it is left to the end of the process."""
        if self._rank is not None and (self._update is None or self._update.done()):
            await self._in_turn(self._rank.shutdown)

    @property
    def _started(self) -> Rank:
        assert self._rank is not None, "start() comes first"
        return self._rank

    async def _in_turn(self, work: Callable[[], Result]) -> Result:
        return await self._begun(work)

    def _begun(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        """In the one thread, since CUDA's current device is a thread's, and behind what was begun there before."""
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _follow(self, steps: int) -> None:
        self._steps = steps


def actor_environment(device: str) -> dict[str, str]:
    """Environment variables of an actor's process on a node with this kind of device.

    Ray sets OMP_NUM_THREADS to the CPUs an actor reserves; on a machine without GPU each actor uses all cores in turn.
    """
    environment = {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    if device == "cpu":
        environment |= {"OMP_NUM_THREADS": str(os.cpu_count() or 1), "DS_ACCELERATOR": "cpu", **CPU_ENVIRONMENT}
    return environment
