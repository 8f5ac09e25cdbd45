"""1.0 if a regular expression matches the completion, and a group of it says what the reference says, else 0.0.

The pattern is the parameter `pattern`, or else the reference's `pattern`; Python's `re` syntax. `mode = "fullmatch"`
asks for a match of the whole text without the blanks around it, `search` for one anywhere. With `group` (a number or
a name) what that group matched must be the reference's `final_answer` (a text or a number, or a list of which any one
will do), blanks around it aside; in search mode every match in the text counts, and all must say it.

Python's engine may take exponential time. That costs the item's deadline and nothing else, because the worker process
it runs in is killed then; so no linear-time engine is needed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Literal

from pydantic import Field, field_validator

from reward_service.rewards.base import InvalidReferenceError, Reference, Reward, RewardParams, acceptable_answers
from reward_service.text.extraction import shown
from reward_service.types import ReferenceKeys, RewardScore

MAX_PATTERN_CHARS: Final = 1000


class Params(RewardParams):
    """Parameters of `regex`."""

    pattern: str | None = Field(
        None, min_length=1, max_length=MAX_PATTERN_CHARS, description="None: the reference's `pattern`."
    )
    mode: Literal["fullmatch", "search"] = Field("fullmatch", description="The whole text, or anywhere in it.")
    group: int | str | None = Field(None, description="The group that must say the reference's `final_answer`.")
    ignore_case: bool = Field(False, description="Upper and lower case do not matter to the pattern.")
    multiline: bool = Field(False, description="`^` and `$` match at line ends too.")
    dotall: bool = Field(False, description="`.` matches line ends too.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            _compile(pattern, 0)
        return pattern


def score(completion: str, reference: Reference, params: Params) -> RewardScore:
    """1.0 or 0.0; `details["extracted"]` is what the (first) match or its group says, None if there is none."""
    pattern = _pattern(reference, params)
    if params.mode == "fullmatch":
        match = pattern.fullmatch(completion.strip())
        matches = iter(() if match is None else (match,))
    else:
        matches = pattern.finditer(completion)
    first = next(matches, None)
    if first is None:
        return RewardScore(score=0.0, details={"extracted": None, "why": "no match"})
    if params.group is None:
        return RewardScore(score=1.0, details={"extracted": shown(first.group())})
    expected = {text.strip() for text in acceptable_answers(reference)}
    details = {"extracted": None if first[params.group] is None else shown(first[params.group])}
    for match in (first, *matches):
        said = match[params.group]
        if said is None or said.strip() not in expected:
            return RewardScore(score=0.0, details={**details, "why": f"the group says {shown(str(said))}"})
    return RewardScore(score=1.0, details=details)


def reference_keys(params: Params) -> ReferenceKeys:
    """The pattern unless the parameters have it, and the answer if a group has to say it."""
    pattern = () if params.pattern is not None else ("pattern",)
    if params.group is None:
        return ReferenceKeys(required=pattern, optional=("final_answer",))
    return ReferenceKeys(required=(*pattern, "final_answer"))


def _pattern(reference: Reference, params: Params) -> re.Pattern[str]:
    text = params.pattern if params.pattern is not None else (reference or {}).get("pattern")
    if not isinstance(text, str) or not 0 < len(text) <= MAX_PATTERN_CHARS:
        raise InvalidReferenceError(
            f'neither the params nor the reference have a "pattern" of 1 to {MAX_PATTERN_CHARS} characters'
        )
    flags = (re.I if params.ignore_case else 0) | (re.M if params.multiline else 0) | (re.S if params.dotall else 0)
    try:
        pattern = _compile(text, flags)
    except ValueError as error:
        raise InvalidReferenceError(str(error)) from None
    if params.group is not None and params.group not in (*range(pattern.groups + 1), *pattern.groupindex):
        raise InvalidReferenceError(f"the pattern has no group {params.group!r:.50}")
    return pattern


@lru_cache(maxsize=256)
def _compile(pattern: str, flags: int) -> re.Pattern[str]:
    try:
        return re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern {pattern!r:.100} is not a regular expression: {error}") from None


REWARD = Reward(name="regex", params=Params, score=score, keys=reference_keys, deadline_s=1.0)
