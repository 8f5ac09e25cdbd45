"""The protocols that other trainers speak, as pure functions between their bodies and ours.

OpenRLHF's remote reward sends lists: `query` is a prompt with its completion, `prompts` and `labels` belong to it; it
expects `rewards`, `scores` (which its dynamic sampling filters by, so they are in [0, 1]) and `extra_logs`, lists of as
many numbers. slime sends one item a request and expects a bare number. Neither can say "no score": the profile says
which number stands for it, and unless it does the answer is an error: 409 where the label is at fault, else 503.

Both decode the sampled tokens with the one that ended them, so that an answer arrives as "72<|im_end|>", which is no
number: the profile names such texts, and they are taken off the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from reward_service.errors import ContradictionError, InvalidLabelError, UnscorableError
from reward_service.pool.messages import EncodedItem, ScoredItem
from reward_service.schemas import OpenRlhfRequest, OpenRlhfResponse, ScoreItem, SlimeRequest
from reward_service.scoring import Plan
from reward_service.settings import Profile
from reward_service.text.chat import transcript
from reward_service.types import Reason

_MAX_END_TOKENS = 4


def from_openrlhf(body: OpenRlhfRequest, profile: Profile) -> list[ScoreItem]:
    """The items; the completion is the query without its leading prompt. ContradictionError if one does not lead."""
    lengths = {len(body.query), len(body.prompts), len(body.labels)}
    if len(lengths) > 1:
        raise ContradictionError(
            f"query, prompts and labels must be as long as one another; they have {len(body.query)},"
            f" {len(body.prompts)} and {len(body.labels)} entries"
        )
    items = []
    for index, (query, prompt, label) in enumerate(zip(body.query, body.prompts, body.labels, strict=True)):
        if not query.startswith(prompt):
            raise ContradictionError(
                f"query.{index} does not begin with prompts.{index}, so its completion cannot be told apart"
            )
        items.append(_item(prompt, query[len(prompt) :], label, profile, str(index)))
    return items


def to_openrlhf(plan: Plan, results: Sequence[ScoredItem], profile: Profile) -> OpenRlhfResponse:
    """The answer. UnscorableError where an item has no score and the profile has no number for that."""
    totals = [_total(plan, result, index, profile) for index, result in enumerate(results)]
    low = sum(min(p.weight * p.reward.low, p.weight * p.reward.high) for p in plan)
    high = sum(max(p.weight * p.reward.low, p.weight * p.reward.high) for p in plan)
    shares = [min(1.0, max(0.0, (total - low) / (high - low))) if high > low else 0.0 for total in totals]
    logs = {
        planned.reward.name: [_or(result.scores[index], profile) for result in results]
        for index, planned in enumerate(plan)
    }
    return OpenRlhfResponse(rewards=totals, scores=shares, extra_logs=logs)


def from_slime(body: SlimeRequest, profile: Profile) -> list[ScoreItem]:
    """The one item; chat messages are put down as `role: content` lines."""
    return [_item(transcript(body.prompt), body.response, body.label, profile, "")]


def to_slime(plan: Plan, results: Sequence[ScoredItem], profile: Profile) -> float:
    """The bare number."""
    return _total(plan, results[0], 0, profile)


def _item(prompt: str, completion: str, label: Any, profile: Profile, item_id: str) -> ScoreItem:
    # A label that is an object already is the whole reference.
    reference = label if isinstance(label, dict) else {profile.label_key: label}
    return ScoreItem(
        completion=_without_end_tokens(completion, profile), prompt=prompt, reference=reference, id=item_id
    )


def _without_end_tokens(completion: str, profile: Profile) -> str:
    """A few at most: one ends the sampling, and a turn may have one of its own."""
    for _ in range(_MAX_END_TOKENS):
        ended = next((token for token in profile.end_tokens if completion.endswith(token)), None)
        if ended is None:
            break
        completion = completion.removesuffix(ended)
    return completion


def _total(plan: Plan, result: ScoredItem, index: int, profile: Profile) -> float:
    """The weighted total with every reward in it: a part of it would be another scale."""
    missing = [planned.reward.name for planned, score in zip(plan, result.scores, strict=True) if score is None]
    if not missing and result.total is not None:
        return result.total
    if profile.unscorable is None:
        rewards = msgspec.json.decode(result.result, type=EncodedItem).rewards
        of_label = all(rewards[name].reason == Reason.INVALID_REFERENCE for name in missing)
        raise (InvalidLabelError if of_label else UnscorableError)(
            f"item {index} has no score for {', '.join(missing)}, which this protocol cannot say; the profile's setting"
            " `unscorable` can name a number for it, or use POST /v1/score"
        )
    return profile.unscorable


def _or(score: float | None, profile: Profile) -> float:
    return score if score is not None else float(profile.unscorable or 0.0)
