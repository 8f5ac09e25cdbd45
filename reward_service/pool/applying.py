"""Rewards applied to one item, by a worker or, where that is quicker, by the server itself; and what is counted."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableSequence, Sequence
from typing import Final

import msgspec

from reward_service.pool.messages import EncodedItem, RewardStats, ScoredItem
from reward_service.rewards.base import Task
from reward_service.schemas import ScoreItem
from reward_service.scoring import Plan, apply_reward, unscored, weighted_total
from reward_service.types import RewardScore

Verdicts = Mapping[str, tuple[str, str]]
"""Which rewards are not to be run, and why: reward → (reason, message)."""
NO_VERDICTS: Final[Verdicts] = {}

_to_json = msgspec.json.Encoder(enc_hook=str).encode


def score_item(
    plan: Plan,
    item: ScoreItem,
    stats: Sequence[RewardStats],
    progress: MutableSequence[float],
    position: int = 0,
    verdicts: Verdicts = NO_VERDICTS,
) -> ScoredItem:
    """What all rewards say of one item.

    Args:
        plan: the rewards.
        item: what they look at.
        stats: of the plan's rewards, in its order: what they did is added.
        progress: is told before each reward since when it runs (`time.monotonic`), and position * 64 + reward.
        position: the item's, in its job.
        verdicts: which rewards are not to be run.
    """
    task = Task(item.completion, item.reference, item.prompt, item.metadata)
    scores: dict[str, RewardScore] = {}
    began = time.monotonic()
    for index, planned in enumerate(plan):
        # In this order: whoever reads between the two takes the old item for younger than it is, never for older.
        progress[0] = began
        progress[1] = position * 64 + index
        name = planned.reward.name
        verdict = verdicts.get(name)
        score = apply_reward(planned, task) if verdict is None else unscored(*verdict)
        now = time.monotonic()
        stats[index].count(now - began, score.reason)
        began = now
        scores[name] = score
    total = weighted_total(plan, scores)
    return ScoredItem(total, [score.score for score in scores.values()], _encode(item.id, total, scores))


def _encode(item_id: str, total: float | None, scores: dict[str, RewardScore]) -> bytes:
    """As JSON. Details are for people, and a reward of somebody's own may put there what JSON does not take."""
    try:
        return _to_json(EncodedItem(item_id, total, scores))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        told = {"message": f"the details were not JSON: {error}"[:200]}
        plain = {name: RewardScore(score=s.score, reason=s.reason, details=told) for name, s in scores.items()}
        return _to_json(EncodedItem(item_id, total, plain))
