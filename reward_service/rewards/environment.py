"""What an episode's environment paid: the sum of its turns' rewards, sooner ones worth more, or the first or last one.

Whoever ran the episode says it in the item's metadata: `episode`, with `rewards`, one a turn (null: nothing was paid
for the turn), and `failure`, null or why there is nothing to pay for. With γ = `discount` turn t, from 0, counts γ^t·r.
An episode that was paid nothing has 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from reward_service.rewards.base import InvalidReferenceError, Reference, Reward, RewardParams, Task, UnavailableError
from reward_service.types import ReferenceKeys, RewardScore


class Params(RewardParams):
    """Parameters of `environment`."""

    credit: Literal["sum", "first", "last"] = Field(
        "sum", description="All that was paid, or what was paid first or last."
    )
    discount: float = Field(1.0, gt=0, le=1, description="Of a reward, for each turn before it: sooner is worth more.")


def score(completion: str, reference: Reference, params: Params) -> RewardScore:
    """An item without an episode cannot be scored."""
    raise InvalidReferenceError('the metadata has no "episode": this reward is for tasks with an environment')


def paid(rewards: list[float | None], params: Params) -> float:
    """One number of the turns' rewards."""
    found = [reward * params.discount**turn for turn, reward in enumerate(rewards) if reward is not None]
    if params.credit == "sum":
        return math.fsum(found)
    return found[-1 if params.credit == "last" else 0] if found else 0.0


class EnvironmentReward(Reward):
    """Looks at the metadata alone."""

    def apply(self, task: Task, params: RewardParams) -> RewardScore:
        """What was paid; UnavailableError where the episode failed."""
        assert isinstance(params, Params)
        if "episode" not in task.metadata:
            return self.score(task.completion, task.reference, params)
        episode = task.metadata["episode"]
        if not isinstance(episode, Mapping) or not _are_rewards(episode.get("rewards")):
            raise InvalidReferenceError(f"the episode {episode!r:.100} in the metadata has no rewards of its turns")
        if episode.get("failure") is not None:
            raise UnavailableError(str(episode["failure"]))
        return RewardScore(score=paid(list(episode["rewards"]), params), details={"turns": len(episode["rewards"])})


def _are_rewards(rewards: Any) -> bool:
    return isinstance(rewards, list | tuple) and all(
        one is None or (isinstance(one, int | float) and math.isfinite(one)) for one in rewards
    )


REWARD = EnvironmentReward(
    name="environment", low=-1e9, high=1e9, params=Params, score=score, keys=ReferenceKeys(metadata=("episode",))
)
