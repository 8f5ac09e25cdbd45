"""A rollout worker that is an actor, as a member of the pool."""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from orchestration.cluster.actors import RolloutActor
from orchestration.cluster.adapter import RayAdapter
from orchestration.cluster.calls import RemoteActor
from orchestration.concurrency import gather_or_cancel
from orchestration.run.ports import AdapterHandle
from rollout_server.config import RolloutConfig
from rollout_server.types import Completion, Prompt, PublishReport, SamplingParams

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

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        self._num_sequences += sampling.num_generations
        timeout_s = self._config.generation_limit_s(self._num_sequences) + _MARGIN_S
        asked = pickle.dumps((prompt, sampling), pickle.HIGHEST_PROTOCOL)
        try:
            answer = await self.actor.call(RolloutActor.generate, timeout_s=timeout_s)(asked)
        finally:
            self._num_sequences -= sampling.num_generations
        completions: Sequence[Completion] = pickle.loads(answer)
        return completions

    async def publish(self, adapter: AdapterHandle) -> PublishReport:
        assert isinstance(adapter, RayAdapter), "its bytes must be in the object store the workers read"
        timeout_s = self._config.publish_timeout_s + _MARGIN_S
        publish = self.actor.call(RolloutActor.publish, timeout_s=timeout_s)(adapter.reference)
        parts: list[Coroutine[Any, Any, Any]] = [publish, self._tell_probe(adapter, timeout_s)]
        report: PublishReport = (await gather_or_cancel(parts))[0]
        return report

    async def _tell_probe(self, adapter: RayAdapter, timeout_s: float) -> None:
        """The worker loads the adapter while the learner still probes it."""
        probe = await adapter.probe()
        await self.actor.call(RolloutActor.tell_probe, timeout_s=timeout_s)(probe)

    async def heartbeat(self) -> int:
        timeout_s = self._config.stall_timeout_s + _MARGIN_S
        return await self.actor.call(RolloutActor.heartbeat, timeout_s=timeout_s)()

    async def end(self) -> None:
        await self._end(self.actor)
