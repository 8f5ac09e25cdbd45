"""A soft penalty for overlong completions: 0 up to a length, falling in a straight line to -1 at the maximum.

With L the completion's length, M = `max_length` and C = `cache` (the width of the slope):

    0                  if L <= M - C
    (M - C - L) / C    if M - C < L <= M
    -1                 if L > M

as in DAPO (arXiv 2503.14476, equation 13). With C = 0 it is a step at M. The unit is characters, words (what blanks
separate), or tokens: those the caller counts, in the item's metadata as `num_tokens`, as the service has no tokenizer.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from reward_service.rewards.base import InvalidReferenceError, Reference, Reward, RewardParams, Task
from reward_service.types import ReferenceKeys, RewardScore


class Params(RewardParams):
    """Parameters of `length`."""

    unit: Literal["characters", "words", "tokens"] = Field(
        "characters", description="What is counted; tokens come from the metadata's `num_tokens`."
    )
    max_length: int = Field(16384, ge=1, le=10**9, description="Beyond this the penalty is whole; in units.")
    cache: int = Field(4096, ge=0, le=10**9, description="How far before that the penalty begins; in units.")

    @model_validator(mode="after")
    def _fits(self) -> Params:
        if self.cache > self.max_length:
            raise ValueError(f"cache {self.cache} is larger than max_length {self.max_length}")
        return self


def penalty(length: int, max_length: int, cache: int) -> float:
    """The formula above, in [-1, 0]."""
    if length > max_length:
        return -1.0
    over = length - (max_length - cache)
    return -over / cache if over > 0 else 0.0


def score(completion: str, reference: Reference, params: Params) -> RewardScore:
    """The penalty by characters or words; the reference is not looked at."""
    if params.unit == "tokens":
        raise InvalidReferenceError('the unit is tokens, and the metadata has no "num_tokens"')
    return _scored(len(completion) if params.unit == "characters" else len(completion.split()), params)


def _scored(length: int, params: Params) -> RewardScore:
    return RewardScore(score=penalty(length, params.max_length, params.cache), details={params.unit: length})


def reference_keys(params: Params) -> ReferenceKeys:
    """None, and the number of tokens where they are the unit."""
    return ReferenceKeys(metadata=("num_tokens",) if params.unit == "tokens" else ())


class LengthReward(Reward):
    """Looks at the metadata as well."""

    def apply(self, task: Task, params: RewardParams) -> RewardScore:
        """The penalty by the unit; InvalidReferenceError if tokens are asked for and not counted in the metadata."""
        assert isinstance(params, Params)
        if params.unit != "tokens" or "num_tokens" not in task.metadata:
            return self.score(task.completion, task.reference, params)
        num_tokens = task.metadata["num_tokens"]
        if not isinstance(num_tokens, int) or isinstance(num_tokens, bool) or num_tokens < 0:
            raise InvalidReferenceError(f"num_tokens {num_tokens!r:.50} in the metadata is not a number of tokens")
        return _scored(num_tokens, params)


REWARD = LengthReward(name="length", low=-1.0, high=0.0, params=Params, score=score, keys=reference_keys)
