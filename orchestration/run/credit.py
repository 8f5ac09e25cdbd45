"""What each turn of an episode is answerable for.

A turn has nothing to do with what was paid before it. With the weight w and the discount γ of the reward `environment`,
and r_k what was paid for turn k, turn t's total is w · Σ_(k≥t) γ^(k-t)·r_k, the return from it on, and all that the
other rewards give the episode.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from learner.types import ScoredCompletion
from orchestration.run.ports import Scorer
from orchestration.types import Problem
from reward_service.types import RewardSpec
from rollout_server.types import Completion

ENVIRONMENT = "environment"


def returns(rewards: Sequence[float | None], discount: float) -> list[float]:
    """From each turn on; None is nothing paid.

    >>> returns([1.0, None, 4.0], 0.5)
    [2.0, 2.0, 4.0]
    """
    found: list[float] = []
    for reward in reversed(rewards):
        found.insert(0, (reward or 0.0) + discount * (found[0] if found else 0.0))
    return found


class TurnCreditScorer:
    """Scores as the inner one does, and says what each turn is answerable for.

    Args:
        rewards: The run's, `environment` among them.
    """

    def __init__(self, inner: Scorer, rewards: Sequence[RewardSpec]) -> None:
        self._inner = inner
        self._place = [spec.name for spec in rewards].index(ENVIRONMENT)
        self._weight = rewards[self._place].weight
        self._discount = float(rewards[self._place].params.get("discount", 1.0))

    @property
    def reward_names(self) -> Sequence[str]:
        return self._inner.reward_names

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        """With `turn_totals`, where an episode was scored."""
        return [self._by_turn(member) for member in await self._inner.score(problem, prompt_text, completions)]

    def _by_turn(self, member: ScoredCompletion) -> ScoredCompletion:
        paid = member.rewards[self._place]
        if member.total is None or paid is None:
            return member
        others = member.total - self._weight * paid
        found = returns([turn.reward for turn in member.completion.turns], self._discount)
        return dataclasses.replace(member, turn_totals=tuple(others + self._weight * one for one in found))
