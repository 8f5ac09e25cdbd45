"""Reading the service's answers, trusting nothing: a wrong score is worse than none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import orjson

from reward_service.clients.errors import BadAnswerError
from reward_service.types import ItemResult, RewardItem, RewardScore, RewardSpec

_MAX_SHOWN_CHARS = 200


def encode_request(
    items: Sequence[RewardItem], rewards: Sequence[RewardSpec], run_id: str | None, policy_version: int | None
) -> bytes:
    """Body of POST /v1/score."""
    body = {"rewards": list(rewards), "items": list(items), "run_id": run_id, "policy_version": policy_version}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)


def decode_response(body: bytes, items: Sequence[RewardItem], rewards: Sequence[RewardSpec]) -> list[ItemResult]:
    """One result an item, in the items' order. BadAnswerError says what is wrong with anything else."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadAnswerError(f"not JSON ({error}): {shown(body)}") from None
    results = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(results, list):
        raise BadAnswerError(f'no list "results": {shown(body)}')
    if len(results) != len(items):
        raise BadAnswerError(f"{len(results)} results for {len(items)} items")
    names = [reward.name for reward in rewards]
    return [_item(f"results.{index}", results[index], item.id, names) for index, item in enumerate(items)]


def error_detail(body: bytes) -> str:
    """What an error answer says, on one line."""
    try:
        answer = orjson.loads(body)
        return f"{answer['error']}: {answer['detail']}"[:_MAX_SHOWN_CHARS]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return shown(body)


def shown(body: bytes) -> str:
    """The beginning of a body, for messages."""
    text = body[:_MAX_SHOWN_CHARS].decode(errors="replace")
    return repr(text) + ("…" if len(body) > _MAX_SHOWN_CHARS else "")


def _item(where: str, result: Any, expected_id: str, names: Sequence[str]) -> ItemResult:
    if not isinstance(result, dict):
        raise BadAnswerError(f"{where} is not an object: {result!r:.100}")
    if result.get("id") != expected_id:
        raise BadAnswerError(f"{where} has id {result.get('id')!r:.100} where {expected_id!r:.100} was asked for")
    scores = result.get("rewards")
    if not isinstance(scores, dict):
        raise BadAnswerError(f'{where} has no object "rewards"')
    if missing := [name for name in names if name not in scores]:
        raise BadAnswerError(f"{where} lacks the reward {', '.join(missing)}")
    rewards = {name: _score(f"{where}.rewards.{name}", scores[name]) for name in names}
    total = _number(f"{where}.total", result.get("total"))
    if (total is None) != all(reward.score is None for reward in rewards.values()):
        raise BadAnswerError(f"{where}.total is {total}, which does not fit its scores")
    return ItemResult(id=expected_id, total=total, rewards=rewards)


def _score(where: str, reward: Any) -> RewardScore:
    if not isinstance(reward, dict) or "score" not in reward:
        raise BadAnswerError(f"{where} has no score")
    score = _number(f"{where}.score", reward["score"])
    reason = reward.get("reason")
    if not (reason is None or isinstance(reason, str)) or (score is None and not reason):
        raise BadAnswerError(f"{where} has the score {score} and the reason {reason!r:.100}")
    details = reward.get("details")
    if not (details is None or isinstance(details, dict)):
        raise BadAnswerError(f"{where}.details is not an object")
    return RewardScore(score=score, reason=reason, details=details or {})


def _number(where: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadAnswerError(f"{where} is not a finite number: {value!r:.100}")
    return float(value)
