"""Reading a judge's answer, strictly; pure.

The whole message must be one JSON object that fits the schema the judge was given: no fence around it, no word before
or after, no further or doubled key, a score within the scale. There is no search for a number in prose: it would find
what the completion made the judge quote.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final, NamedTuple

from reward_service.judging.prompt import answer_schema
from reward_service.rewards.base import NotScorableError
from reward_service.rewards.json_schema import parse_json

_MAX_CHARS: Final = 1_000_000


class Vote(NamedTuple):
    """One answer of the judge, in the rubric's scale."""

    score: float
    reasoning: str


class BadVoteError(NotScorableError):
    """The judge's answer is not what it was asked for; it does not count."""


def parse_vote(content: str | None, low: float, high: float) -> Vote:
    """The vote in a message's content.

    Args:
        content: JSON with `score` and `reasoning`, perhaps in a fence.
        low: Least score of the scale.
        high: Largest.

    Raises:
        BadVoteError: It is empty, no such JSON, or off the scale.
    """
    if not content:
        raise BadVoteError("the judge's message is empty")
    try:
        answer = parse_json(content, _MAX_CHARS, max_depth=2)
    except ValueError as error:
        raise BadVoteError(f"the judge's answer does not parse: {error}") from None
    finding = next(_validator(low, high).iter_errors(answer), None)
    if finding is not None:
        raise BadVoteError(f"the judge's answer does not fit: {finding.json_path}: {finding.message:.100}")
    if any("\ud800" <= character <= "\udfff" for character in answer["reasoning"]):
        raise BadVoteError("the judge's reasoning is not Unicode text: half of a surrogate pair stands in it")
    return Vote(float(answer["score"]), answer["reasoning"])


@lru_cache(maxsize=64)
def _validator(low: float, high: float) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(answer_schema(low, high))
