"""A rollout worker that is an actor, as a member of the pool."""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from orchestration.cluster.actors import RolloutActor
from orchestration.cluster.adapter import RayAdapter
from orchestration.cluster.calls import RemoteActor, ray_is_encrypted
from orchestration.cluster.reward.beside import ServiceAddress, is_of_one_host
from orchestration.cluster.reward.keeper import RewardKeeper
from orchestration.cluster.upkeep.lines import Line, LineCutError
from orchestration.cluster.upkeep.pool import RolloutPool
from orchestration.concurrency import gather_or_cancel
from orchestration.run.ports import AdapterHandle, Drawn
from orchestration.run.reporter import Note
from orchestration.settings.config import RunConfig
from orchestration.types import BuiltPrompt
from rollout_server.config import RolloutConfig
from rollout_server.types import Completion, Prompt, PublishReport, SamplingParams

_Method = Callable[[RolloutActor, bytes], Coroutine[Any, Any, bytes]]
Result = TypeVar("Result")
_MARGIN_S = 15.0
"""What a call takes longer than the worker's own limit, which says more."""


class RayMember:
    """A rollout worker in an actor of its own.

    Args:
        end: Ends the actor's processes; never raises.
    """

    def __init__(
        self,
        actor: RemoteActor[RolloutActor],
        config: RolloutConfig,
        end: Callable[[RemoteActor[RolloutActor]], Awaitable[None]],
    ) -> None:
        self.actor, self._config, self._end = actor, config, end
        self._num_sequences = 0  # asked for and not answered

    @property
    def name(self) -> str:
        return f"{self.actor.name} ({self.actor.where})"

    async def start(self) -> None:
        timeout_s = self._config.start_timeout_s
        self.actor.process = await self.actor.call(RolloutActor.here, timeout_s=timeout_s)()
        self.actor.where = str(self.actor.process)
        await self.actor.call(RolloutActor.start, timeout_s=timeout_s + _MARGIN_S)()
        if not ray_is_encrypted() and (end := await self.actor.call(RolloutActor.listen, timeout_s=timeout_s)()):
            self.actor.line = await Line.to(end)

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        asked = prompt, sampling
        completions: Sequence[Completion] = await self._made(RolloutActor.generate, asked, sampling.num_generations)
        return completions

    async def generate_scored(
        self, prompt: Prompt, sampling: SamplingParams, built: BuiltPrompt, address: ServiceAddress, limit_s: float
    ) -> Drawn:
        """A group with its scores.

        Args:
            limit_s: What scoring may take at most.
        """
        asked = prompt, sampling, built.problem, built.text, address
        method, number = RolloutActor.generate_scored, sampling.num_generations
        drawn: Drawn = await self._made(method, asked, number, limit_s=limit_s)
        return drawn

    async def _made(self, method: _Method, asked: tuple[Any, ...], num_sequences: int, *, limit_s: float = 0.0) -> Any:
        self._num_sequences += num_sequences
        timeout_s = self._config.generation_limit_s(self._num_sequences) + _MARGIN_S + limit_s
        try:
            answer = await self.actor.call(method, timeout_s=timeout_s)(pickle.dumps(asked, pickle.HIGHEST_PROTOCOL))
        except LineCutError:
            await self.heartbeat()  # raises, and says how, where the worker has died
            raise
        finally:
            self._num_sequences -= num_sequences
        return pickle.loads(answer)

    async def publish(self, adapter: AdapterHandle) -> PublishReport:
        assert isinstance(adapter, RayAdapter), "its bytes must be in the object store the workers read"
        timeout_s = self._config.publish_timeout_s + _MARGIN_S
        publish = self.actor.call(RolloutActor.publish, timeout_s=timeout_s)
        parts: list[Coroutine[Any, Any, Any]] = [adapter.given(publish), self._tell_probe(adapter, timeout_s)]
        report: PublishReport = (await gather_or_cancel(parts))[0]
        return report

    async def _tell_probe(self, adapter: RayAdapter, timeout_s: float) -> None:
        """The worker loads the adapter while the learner still probes it."""
        probe = await adapter.probe()
        tell = self.actor.call(RolloutActor.tell_probe, timeout_s=timeout_s)
        await _though_cut(lambda: tell(probe))

    async def heartbeat(self) -> int:
        return await _though_cut(
            self.actor.call(RolloutActor.heartbeat, timeout_s=self._config.stall_timeout_s + _MARGIN_S)
        )

    async def end(self) -> None:
        if self.actor.line is not None:
            self.actor.line.close()
        await self._end(self.actor)


async def _though_cut(ask: Callable[[], Awaitable[Result]]) -> Result:
    """The answer to what may be asked twice: through Ray, as everything from then on, where the line is cut."""
    try:
        return await ask()
    except LineCutError:
        return await ask()


class ScoringPool:
    """The pool, as a generator whose groups come with their scores wherever their workers reach the service.

    Args:
        keeper: Of the service, which may be another one after each of its deaths.
        run_id: By which the service's log knows the run.
        node_id: Of this process: a service of this host alone is asked by the workers beside it.
    """

    def __init__(
        self,
        pool: RolloutPool[RayMember],
        keeper: RewardKeeper,
        config: RunConfig,
        *,
        run_id: str,
        node_id: str,
        note: Note = lambda level, message: None,
    ) -> None:
        self._pool, self._keeper, self._config, self._note = pool, keeper, config, note
        self._run_id, self._node_id, self._has_told = run_id, node_id, False

    @property
    def max_sequences(self) -> int | None:
        return self._pool.max_sequences

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        return await self._pool.generate(prompt, sampling)

    async def publish(self, adapter: AdapterHandle) -> Sequence[PublishReport]:
        return await self._pool.publish(adapter)

    async def generate_scored(self, built: BuiltPrompt, prompt: Prompt, sampling: SamplingParams) -> Drawn:
        """As `run.ports.ScoringGenerator`."""
        address, reward = self._address(), self._config.reward

        async def work(member: RayMember, asked: Prompt) -> Drawn:
            if address is None or not self._reaches(member, address):
                return Drawn(completions_G=await member.generate(asked, sampling))
            return await member.generate_scored(asked, sampling, built, address, reward.deadline_s)

        drawn = await self._pool.ask(prompt, sampling.num_generations, work)
        if drawn.problem and not self._has_told:
            self._has_told = True
            self._note("info", f"a worker did not have its group scored, which is done from here then: {drawn.problem}")
        return drawn

    def _address(self) -> ServiceAddress | None:
        """None: the service is not there now."""
        if self._keeper.url() is None:
            return None
        client = self._keeper.client
        places = max(self._config.reward.max_concurrency // self._pool.num_workers, 1)
        return ServiceAddress(url=client.address, api_key=client.api_key, run_id=self._run_id, places=places)

    def _reaches(self, member: RayMember, address: ServiceAddress) -> bool:
        process = member.actor.process
        return not is_of_one_host(address.url) or (process is not None and process.node_id == self._node_id)
