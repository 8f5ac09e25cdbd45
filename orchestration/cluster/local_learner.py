"""A learner rank in this process, without Ray: for `rlvr replay`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learner.types import ScoredGroup, UpdateMetrics
from orchestration.cluster.actors import actor_environment
from orchestration.cluster.local import LocalAdapter
from orchestration.settings.config import RunConfig
from orchestration.sockets import LOOPBACK

if TYPE_CHECKING:
    from learner.worker import LearnerRank


def learner_settings(config: RunConfig, *, device: str) -> dict[str, Any]:
    """Arguments of `learner.worker.LearnerRank` that follow from a run's settings."""
    return {
        "config": config.learner,
        "temperature": config.rollout.temperature,
        "seed": config.seed,
        "device": device,
        "max_completion_length": config.rollout.max_completion_length,
        "max_steps": config.max_steps,
        "reward_weights": tuple(reward.weight for reward in config.rewards),
    }


def rank_alone(model_path: str, **settings: Any) -> LearnerRank:
    """The only rank of a learner, to be started; with `LearnerRank`'s other arguments."""
    from learner.worker import LearnerRank

    return LearnerRank(rank=0, world_size=1, master_addr=LOOPBACK, master_port=0, model_path=model_path, **settings)


class LocalLearner:
    """The `Learner` port over one rank in this process."""

    def __init__(self, rank: LearnerRank, max_staleness: int) -> None:
        self._rank, self._max_staleness, self._step = rank, max_staleness, 0

    async def update(self, groups_P: Sequence[ScoredGroup]) -> UpdateMetrics:
        metrics = await asyncio.to_thread(
            self._rank.update, groups_P, max_staleness=self._max_staleness, step=self._step + 1
        )
        self._step = metrics.step
        return metrics

    async def gradient_share(
        self, groups_P: Sequence[ScoredGroup], group: int, member: int
    ) -> Mapping[str, float] | None:
        """Of a completion, in the update that would be made of these groups now; see `LearnerRank`."""
        return await asyncio.to_thread(self._rank.gradient_share, groups_P, group, member)

    async def export_adapter(self) -> LocalAdapter:
        payload = await asyncio.to_thread(self._rank.export_adapter)
        return LocalAdapter(payload=payload, probe=await asyncio.to_thread(self._rank.probe_adapter))

    async def save_checkpoint(self, folder: str, files: Mapping[str, bytes]) -> None:
        await asyncio.to_thread(self._rank.save_checkpoint, folder, files)

    async def load_checkpoint(self, folder: str) -> int:
        self._step = await asyncio.to_thread(self._rank.load_checkpoint, folder)
        return self._step


@asynccontextmanager
async def local_learner(*, model_path: Path, config: RunConfig, device: str) -> AsyncIterator[LocalLearner]:
    """A learner of one rank, which ends with the block."""
    for name, value in actor_environment(device).items():  # before torch is there
        os.environ.setdefault(name, value)
    rank = rank_alone(str(model_path), **learner_settings(config, device=device))
    await asyncio.to_thread(rank.start)
    try:
        yield LocalLearner(rank, config.max_staleness)
    finally:
        await asyncio.to_thread(rank.shutdown)
