"""What the endpoints share: from parsed items to results, whichever protocol they came by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from reward_service.bodies import Bodies, check_limits
from reward_service.errors import UnknownProfileError
from reward_service.metrics import Metrics
from reward_service.pool.messages import ScoredItem
from reward_service.pool.pool import WorkerPool
from reward_service.rewards.base import Reward
from reward_service.schemas import EncodedResponse, EncodedResult, ScoreItem, ServiceInfo
from reward_service.scoring import Plan, make_plan
from reward_service.settings import Profile, ServiceSettings
from reward_service.types import RewardSpec


class Scored(NamedTuple):
    """Items with their results, in the items' order."""

    plan: Plan
    items: Sequence[ScoreItem]
    results: Sequence[ScoredItem]


class RewardService:
    """Scores on the pool what requests ask for. All methods are called on one event loop."""

    def __init__(self, settings: ServiceSettings, rewards: Mapping[str, Reward], version: str) -> None:
        """Raises ServiceError where a profile does not fit the rewards."""
        self.settings, self.rewards, self.version = settings, rewards, version
        self.pool = WorkerPool(settings, sorted({module for reward in rewards.values() for module in reward.preload}))
        self.bodies = Bodies(settings)
        self.metrics = Metrics(self.pool, None)
        self._profiles = {
            name: tuple(RewardSpec(name=r.name, weight=r.weight, params=r.params) for r in profile.rewards)
            for name, profile in settings.profiles.items()
            if settings.rewards is None or all(r.name in rewards for r in profile.rewards)
        }
        for specs in self._profiles.values():
            make_plan(specs, rewards)

    async def start(self) -> None:
        for reward in self.rewards.values():
            _ = reward.version  # worked out from source files before any request
        await self.pool.start()

    async def close(self) -> None:
        await self.pool.close()

    def profile(self, name: str) -> tuple[Profile, tuple[RewardSpec, ...]]:
        """A profile with its rewards; UnknownProfileError if there is none."""
        if name not in self._profiles:
            there = ", ".join(sorted(self._profiles)) or "none"
            raise UnknownProfileError(f"there is no profile {name!r:.100}; this service has {there}")
        return self.settings.profiles[name], self._profiles[name]

    async def score(
        self,
        specs: tuple[RewardSpec, ...],
        items: list[ScoreItem],
        *,
        run_id: str | None = None,
        policy_version: int | None = None,
    ) -> Scored:
        """Every reward on every item. ServiceError if the request cannot be taken as a whole."""
        plan = make_plan(specs, self.rewards)
        check_limits(items, self.settings)
        deadlines_s = [self.settings.deadline_of(p.reward.name, p.reward.deadline_s) for p in plan]
        tasks = [(item.completion, item.reference, item.prompt, item.metadata) for item in items]
        results = await self.pool.score(specs, deadlines_s, tasks)
        self.metrics.items.inc(len(items))
        return Scored(plan, items, results)

    def encode(self, scored: Scored) -> bytes:
        """The answer of POST /v1/score."""
        results = [
            EncodedResult(item.id, result.total, msgspec.Raw(result.rewards))
            for item, result in zip(scored.items, scored.results, strict=True)
        ]
        versions = {planned.reward.name: planned.reward.version for planned in scored.plan}
        return msgspec.json.encode(EncodedResponse(results, ServiceInfo(self.version, versions)))
