"""Scoring as pure functions: named rewards, weights, totals. Who runs them, and how long, is the pool's business."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import ValidationError

from reward_service.errors import ContradictionError, InvalidParamsError, UnknownRewardError, describe_validation
from reward_service.rewards.base import NotScorableError, Reward, RewardParams, Task
from reward_service.types import Reason, RewardScore, RewardSpec

logger = logging.getLogger(__name__)

_MAX_MESSAGE_CHARS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedReward:
    """A reward of a request: looked up, its parameters validated."""

    reward: Reward
    weight: float
    params: RewardParams


Plan = Sequence[PlannedReward]


def make_plan(specs: Iterable[RewardSpec], rewards: Mapping[str, Reward]) -> Plan:
    """Looks the rewards up and validates their parameters.

    Args:
        specs: what a request asks for.
        rewards: what is served, by name.

    Raises:
        UnknownRewardError: there is no such reward.
        ContradictionError: a reward is asked for twice, or parameters do not fit one another.
        InvalidParamsError: parameters do not fit the reward's model.
    """
    plan: dict[str, PlannedReward] = {}
    for spec in specs:
        if spec.name not in rewards:
            raise UnknownRewardError(
                f"there is no reward {spec.name!r:.100}; this service has {', '.join(sorted(rewards))}"
            )
        if spec.name in plan:
            raise ContradictionError(f"reward {spec.name!r} is asked for twice; results are keyed by name, so ask once")
        try:
            params = _validated(rewards[spec.name].params, spec.params)
        except ValidationError as error:
            # What a validator of the reward's own refuses fits the schema, but not together.
            kind = ContradictionError if {e["type"] for e in error.errors()} == {"value_error"} else InvalidParamsError
            raise kind(f"params of reward {spec.name!r}: {describe_validation(error)}") from None
        plan[spec.name] = PlannedReward(reward=rewards[spec.name], weight=spec.weight, params=params)
    return tuple(plan.values())


def _validated(model: type[RewardParams], params: Mapping[str, Any]) -> RewardParams:
    """As JSON, where strict means what the published schema means; to which 2.0 is an integer."""
    whole = {k: int(v) if isinstance(v, float) and v.is_integer() and abs(v) < 2**53 else v for k, v in params.items()}
    return model.model_validate_json(msgspec.json.encode(whole), strict=True)


def unscored(reason: str, message: str) -> RewardScore:
    """No score, with the reason for programs and a message for people."""
    return RewardScore(score=None, reason=reason, details={"message": message[:_MAX_MESSAGE_CHARS]})


def apply_reward(planned: PlannedReward, task: Task) -> RewardScore:
    """One reward on one item. Whatever the reward raises, this returns: a failure is null with a reason, never 0."""
    try:
        result = planned.reward.apply(task, planned.params)
        if result.score is not None and not math.isfinite(result.score):
            raise ValueError(f"the reward gave {result.score}, which is not a finite number")
    except NotScorableError as error:
        return unscored(error.reason, str(error))
    except MemoryError:
        return unscored(Reason.OUT_OF_MEMORY, "the reward wanted more memory than worker_memory_bytes allows")
    except BaseException as error:  # a verifier that calls sys.exit has failed like any other
        logger.exception("reward %s failed", planned.reward.name)
        return unscored(Reason.VERIFIER_ERROR, f"{type(error).__name__}: {error}")
    return result


def weighted_total(plan: Plan, scores: Mapping[str, RewardScore]) -> float | None:
    """Sum of weight * score over what was scored; None if nothing was."""
    total: float | None = None
    for planned in plan:
        score = scores[planned.reward.name].score
        if score is not None:
            total = (total or 0.0) + planned.weight * score
    return total
