"""The loop's `Generator` port over rollout workers that are actors."""

from __future__ import annotations

from collections.abc import Sequence

from orchestration.cluster.actors import RolloutActor
from orchestration.cluster.adapter import RayAdapter
from orchestration.cluster.calls import RemoteActor
from orchestration.concurrency import gather_or_cancel
from orchestration.run.ports import AdapterHandle
from orchestration.settings.config import RunConfig
from rollout_server.balancing import Balancer, prefix_key
from rollout_server.types import Completion, Prompt, PublishReport, SamplingParams


class RayGenerator:
    """The rollout workers. A group goes to the worker with the least to do; an adapter goes to all of them."""

    def __init__(self, workers: Sequence[RemoteActor[RolloutActor]], config: RunConfig) -> None:
        self._workers, self._rollout = tuple(workers), config.rollout
        self._balancer = Balancer(num_workers=len(workers))

    @property
    def workers(self) -> tuple[RemoteActor[RolloutActor], ...]:
        return self._workers

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        num_sequences = sampling.num_generations
        index = self._balancer.begin(prefix=prefix_key(prompt.token_ids), num_sequences=num_sequences)
        try:
            generate = self._workers[index].call(RolloutActor.generate, timeout_s=self._rollout.generate_timeout_s)
            return await generate(prompt, sampling)
        finally:
            self._balancer.end(index, num_sequences=num_sequences)

    async def publish(self, adapter: AdapterHandle) -> Sequence[PublishReport]:
        assert isinstance(adapter, RayAdapter), "its bytes must be in the object store the workers read"
        timeout_s = self._rollout.publish_timeout_s
        return await gather_or_cancel(
            worker.call(RolloutActor.publish, timeout_s=timeout_s)(adapter.reference) for worker in self._workers
        )
