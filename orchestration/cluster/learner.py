"""The loop's `Learner` port over learner ranks that are actors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from learner.types import ScoredGroup, UpdateMetrics
from orchestration.cluster.actors import LearnerActor
from orchestration.cluster.adapter import RayAdapter
from orchestration.cluster.calls import RemoteActor, shared
from orchestration.concurrency import gather_or_cancel
from orchestration.settings.config import RunConfig

Params = ParamSpec("Params")
Result = TypeVar("Result")


class RayLearner:
    """All learner ranks, called together."""

    def __init__(self, ranks: Sequence[RemoteActor[LearnerActor]], config: RunConfig) -> None:
        self._ranks, self._config = tuple(ranks), config

    async def notes(self) -> tuple[str, ...]:
        """What a user should know of the started model; the ranks say the same."""
        return await self._ranks[0].call(LearnerActor.notes, timeout_s=self._config.learner.start_timeout_s)()

    async def update(self, groups_P: Sequence[ScoredGroup]) -> UpdateMetrics:
        timeout_s = self._config.learner.update_timeout_s
        groups = shared(tuple(groups_P))
        answers = await self._all(LearnerActor.update, timeout_s, groups, self._config.max_staleness)
        return answers[0]

    async def export_adapter(self) -> RayAdapter:
        """All ranks take part (ZeRO-3 gathers); the bytes stay in the object store of rank 0's node."""
        timeout_s = self._config.rollout.publish_timeout_s
        exports = [rank.begin(LearnerActor.export_adapter)() for rank in self._ranks]
        await gather_or_cancel(export.settled(timeout_s=timeout_s) for export in exports)
        return RayAdapter(exports[0], timeout_s)

    async def save_checkpoint(self, folder: str, files: Mapping[str, bytes]) -> None:
        await self._all(LearnerActor.save_checkpoint, self._config.learner.update_timeout_s, folder, files)

    async def load_checkpoint(self, folder: str) -> int:
        steps = await self._all(LearnerActor.load_checkpoint, self._config.learner.start_timeout_s, folder)
        return steps[0]

    async def _all(
        self,
        method: Callable[Concatenate[LearnerActor, Params], Result],
        timeout_s: float,
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> list[Result]:
        """The same call on all ranks. The first failure is raised at once: the others may wait in a collective."""
        return await gather_or_cancel(rank.call(method, timeout_s=timeout_s)(*args, **kwargs) for rank in self._ranks)
