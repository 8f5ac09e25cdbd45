"""0.5 for exactly one answer line, and that one well-formed: `#### The final answer is N` on a line of its own; else 0.

N is a number as `reward_service.text.numerals` defines it: an optional sign and currency sign, thousands separators,
percent sign or short unit, one full stop at the end. Whether it is the right one does not matter here. Text after the
line does not matter either; a second answer line does, even one that agrees.

With `rule = "lax"` a line that begins `#### The final answer is ` and goes on with an ASCII digit is enough, whatever
follows and however many there are.
"""

from __future__ import annotations

from itertools import islice
from typing import Literal

from pydantic import Field

from reward_service.rewards.base import Reference, Reward, RewardParams
from reward_service.text.answers import answer_lines
from reward_service.types import ANSWER_PREFIX, ReferenceKeys, RewardScore


class Params(RewardParams):
    """Parameters of `gsm8k_format`."""

    rule: Literal["strict", "lax"] = Field("strict", description="lax: one line with the prefix and a digit is enough.")
    prefix: str = Field(ANSWER_PREFIX, min_length=1, max_length=200, description="How an answer line begins.")


def score(completion: str, reference: Reference, params: Params) -> RewardScore:
    """0.5 or 0; the reference is not looked at."""
    if params.rule == "lax":
        digits = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
        found = any(line.text.startswith(digits) for line in answer_lines(completion, params.prefix))
        return _GOOD if found else _NONE
    lines = list(islice(answer_lines(completion, params.prefix), 2))
    if not lines:
        return _NONE
    if len(lines) > 1:
        return _SEVERAL
    return _GOOD if lines[0].well_formed else _MALFORMED


_GOOD = RewardScore(score=0.5)
_NONE = RewardScore(score=0.0, details={"why": "no answer line"})
_SEVERAL = RewardScore(score=0.0, details={"why": "more than one answer line"})
_MALFORMED = RewardScore(score=0.0, details={"why": "the answer line is malformed"})

REWARD = Reward(name="gsm8k_format", high=0.5, params=Params, score=score, keys=ReferenceKeys())
