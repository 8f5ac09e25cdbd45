"""Requests and answers as bytes. Answers are trusted in nothing: a wrong score is worse than none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from reward_service.clients.errors import BadAnswerError
from reward_service.text.labels import is_missing
from reward_service.types import ItemResult, RewardItem, RewardScore, RewardSpec

_MAX_SHOWN_CHARS = 200
_TAG = re.compile(rb"<[^<>]{0,500}>")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreCall:
    """A request that is ready to be sent. Its two parts are encoded apart, so that calls can be put together."""

    items: tuple[RewardItem, ...]
    rewards: tuple[RewardSpec, ...]
    deadline: float
    """When it must be answered, by the event loop's clock."""
    head: bytes
    """The body without its items; calls of the same head can share a request."""
    encoded_items: bytes

    @property
    def body(self) -> bytes:
        """Body of POST /v1/score."""
        return self.head[:-1] + b',"items":[' + self.encoded_items + b"]}"


def make_call(
    items: Sequence[RewardItem],
    rewards: Sequence[RewardSpec],
    *,
    run_id: str | None,
    policy_version: int | None,
    deadline: float,
) -> ScoreCall:
    """Encodes a request. NumPy's scalars and arrays, and tensors, become numbers and lists.

    Args:
        items: To be scored.
        rewards: By which each of them is scored.
        run_id: For the audit log, as is the next.
        policy_version: That sampled the completions.
        deadline: On the event loop's clock, seconds; of several calls in one request the earliest holds.

    Raises:
        ValueError: Something in it is not for JSON.
    """
    head = {"rewards": list(rewards), "run_id": run_id, "policy_version": policy_version}
    return ScoreCall(
        items=tuple(items),
        rewards=tuple(rewards),
        deadline=deadline,
        head=_dumps(head),
        encoded_items=_dumps(list(items))[1:-1],
    )


def merged(calls: Iterable[ScoreCall]) -> ScoreCall:
    """One request for the items of all calls, which have the same head, in their order."""
    calls = list(calls)
    return ScoreCall(
        items=tuple(item for call in calls for item in call.items),
        rewards=calls[0].rewards,
        deadline=min(call.deadline for call in calls),
        head=calls[0].head,
        encoded_items=b",".join(call.encoded_items for call in calls),
    )


def _dumps(value: Any) -> bytes:
    try:
        return _encode(value)
    except UnicodeEncodeError:  # half of a surrogate pair, which the service answers as that item's fault
        return json.dumps(msgspec.to_builtins(value, enc_hook=_plain)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the request cannot be put into JSON: {error}; references, metadata and params take texts, numbers,"
            " booleans, lists and dictionaries"
        ) from None


def _plain(value: Any) -> Any:
    """What msgspec does not know: NumPy's scalars and arrays, tensors, OmegaConf's lists, a table's gaps."""
    if is_missing(value):
        return None
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{value!r:.100} is not JSON, being a {type(value).__name__}")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def decode_response(body: bytes, items: Sequence[RewardItem], rewards: Sequence[RewardSpec]) -> list[ItemResult]:
    """Reads an answer and compares it with what was asked.

    Args:
        body: Of the answer.
        items: Those asked about.
        rewards: By which.

    Returns:
        One result an item, in the items' order.

    Raises:
        BadAnswerError: It is no JSON, has another number of results, other items or rewards, or a score that is none.
    """
    try:
        answer = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
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
        answer = msgspec.json.decode(body)
        return f"{answer['error']}: {answer['detail']}"[:_MAX_SHOWN_CHARS]
    except (ValueError, RecursionError, TypeError, KeyError):
        return shown(b" ".join(_TAG.sub(b" ", body).split()))  # a page that a proxy made


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
