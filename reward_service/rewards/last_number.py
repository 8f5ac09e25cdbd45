"""1.0 if the last number in the text is within 1e-3 of the reference's `final_answer`, else 0.0.

The lenient measure: no format is asked for, so it is for evaluation rather than for training. How a number may be
written is in `reward_service.text.numerals`; units, their exponents and percent signs are passed over. A last "number"
without a value (`1e999`, `1/0`) scores 0. Of a reference below 0.1 a hundredth is tolerated instead.
"""

from __future__ import annotations

from reward_service.rewards.base import FINAL_ANSWER, Reference, Reward, RewardParams, final_answer
from reward_service.text.numerals import close, last_number
from reward_service.types import RewardScore


def score(completion: str, reference: Reference, params: RewardParams) -> RewardScore:
    """1.0 or 0.0; `details["extracted"]` is how the last number is written, None if there is none."""
    expected = final_answer(reference)
    value, written = last_number(completion)
    right = value is not None and close(value, expected)
    return RewardScore(score=1.0 if right else 0.0, details={"extracted": written})


REWARD = Reward(name="last_number", score=score, keys=FINAL_ANSWER)
