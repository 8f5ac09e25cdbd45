"""1.0 if the answer line says a number within 1e-3 of the reference's `final_answer`, else 0.0.

An answer line begins with `#### The final answer is`; what follows must as a whole be one number (see
`reward_service.text.numerals`, for the reference too). With several answer lines every one of them must say that
number: lines that disagree score 0, as does one that says no number, or two ("5 or 6"). Of a reference below 0.1 a
hundredth is tolerated instead.
"""

from __future__ import annotations

from pydantic import Field

from reward_service.rewards.base import FINAL_ANSWER, Reference, Reward, RewardParams, final_answer
from reward_service.text.answers import answer_lines
from reward_service.text.numerals import close
from reward_service.types import ANSWER_PREFIX, RewardScore


class Params(RewardParams):
    """Parameters of `gsm8k_correctness`."""

    prefix: str = Field(ANSWER_PREFIX, min_length=1, max_length=200, description="How an answer line begins.")


def score(completion: str, reference: Reference, params: Params) -> RewardScore:
    """1.0 or 0.0; `details["extracted"]` is what the first answer line says, None if there is none."""
    expected = final_answer(reference)
    first: str | None = None
    for line in answer_lines(completion, params.prefix):
        if first is None:
            first = line.text
        if line.number is None:
            return RewardScore(score=0.0, details={"extracted": first, "why": "an answer line is not one number"})
        if not close(line.number, expected):
            return RewardScore(score=0.0, details={"extracted": first, "why": f"an answer line says {line.text}"})
    if first is None:
        return RewardScore(score=0.0, details={"extracted": None, "why": "no answer line"})
    return RewardScore(score=1.0, details={"extracted": first})


REWARD = Reward(name="gsm8k_correctness", params=Params, score=score, keys=FINAL_ANSWER)
