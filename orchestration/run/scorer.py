"""The loop's scorers: the reward service over HTTP, and the random control."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Sequence
from typing import Protocol

from learner.types import ScoredCompletion
from orchestration.errors import RewardsUnavailableError
from orchestration.run.ports import Scorer
from orchestration.run.rewards import reward_item
from orchestration.types import Problem
from reward_service.clients.errors import RewardServiceError
from reward_service.types import ItemResult, RewardItem, RewardSpec
from rollout_server.types import Completion


class RewardsClient(Protocol):
    """`RewardClient`, or what keeps its service alive."""

    async def score(
        self,
        items: Sequence[RewardItem],
        rewards: Sequence[RewardSpec],
        run_id: str | None = None,
        policy_version: int | None = None,
    ) -> list[ItemResult]: ...


class HttpScorer:
    """Scores over HTTP, as any other trainer would. One call scores one group."""

    def __init__(self, client: RewardsClient, rewards: Sequence[RewardSpec], *, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        self._rewards = tuple(rewards)

    @property
    def reward_names(self) -> Sequence[str]:
        return [reward.name for reward in self._rewards]

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        """Rewards of each completion; an item that could not be scored has None, never 0.

        Raises RewardsUnavailableError when the service does not answer sensibly until the client's deadline.
        """
        items = [
            reward_item(
                problem, prompt=prompt_text, completion=completion.text, item_id=item_id(problem, completion, index)
            )
            for index, completion in enumerate(completions)
        ]
        version = min((completion.adapter_version for completion in completions), default=0)
        try:
            results = await self._client.score(items, self._rewards, run_id=self._run_id, policy_version=version)
        except RewardServiceError as error:
            raise RewardsUnavailableError(str(error)) from error
        return [
            ScoredCompletion(
                completion=completion,
                rewards=tuple(result.rewards[name].score for name in self.reward_names),
                total=result.total,
                reasons=tuple(result.rewards[name].reason for name in self.reward_names),
                item_id=item.id,
            )
            for completion, item, result in zip(completions, items, results, strict=True)
        ]


def item_id(problem: Problem, completion: Completion, index: int) -> str:
    """By which the service is asked about a completion: problem, version, place in the group, and eight digits of the
    text's SHA-256, so that an id is never that of two different answers, and the same in every start of a run."""
    digest = hashlib.sha256(completion.text.encode("utf-8", "replace")).hexdigest()
    return f"{problem.problem_id}/{completion.adapter_version}/{index}/{digest[:8]}"


class RandomControlScorer:
    """Learns from noise: the real rewards are measured and kept, the total is a seeded uniform draw.

    A run under it that gains as much as one with real rewards shows that the gain did not come from the rewards.
    """

    def __init__(self, inner: Scorer, *, seed: int) -> None:
        self._inner, self._seed = inner, seed

    @property
    def reward_names(self) -> Sequence[str]:
        return self._inner.reward_names

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        scored = await self._inner.score(problem, prompt_text, completions)
        return [
            member if member.total is None else dataclasses.replace(member, total=self._draw(problem, member, index))
            for index, member in enumerate(scored)
        ]

    def _draw(self, problem: Problem, member: ScoredCompletion, index: int) -> float:
        """The same whenever and in whatever order completions are scored."""
        version = member.completion.adapter_version
        return random.Random(f"random-control-{self._seed}/{version}/{problem.problem_id}/{index}").random()
