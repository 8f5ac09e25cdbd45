"""A penalty for repetition: -max_penalty times the share of n-grams that stood in the text before.

    score = -max_penalty * (1 - distinct n-grams / all n-grams)

The n-grams are of tokens: words in lower case, but a run without blanks is cut into pieces of 16 characters, and a run
of blanks counts likewise from 16 on. So a flood of one character, of `abab...` or of line feeds is repetition as well.
A text of fewer than n tokens scores 0. Time and memory are linear in the text. The share in a text grows with its
length, in honest ones too: of a thousand English words about 1 in 50 trigrams is a repetition.
"""

from __future__ import annotations

import re
from typing import Final

from pydantic import Field

from reward_service.rewards.base import Reference, Reward, RewardParams
from reward_service.types import ReferenceKeys, RewardScore

_TOKEN: Final = re.compile(r"\S{1,16}|\s{16}")


class Params(RewardParams):
    """Parameters of `repetition`."""

    ngram_size: int = Field(3, ge=1, le=10, description="n, in tokens.")
    max_penalty: float = Field(1.0, ge=0.0, le=1.0, description="The penalty of nothing but repetition.")


def score(completion: str, reference: Reference, params: Params) -> RewardScore:
    """In [-max_penalty, 0]; `details["repeated"]` is the share of repeated n-grams. The reference is not looked at."""
    tokens: list[str] = _TOKEN.findall(completion.lower())
    num_ngrams = len(tokens) - params.ngram_size + 1
    if num_ngrams < 1:
        return RewardScore(score=0.0, details={"repeated": 0.0})
    distinct = len(set(zip(*(tokens[start:] for start in range(params.ngram_size)), strict=False)))
    repeated = 1 - distinct / num_ngrams
    return RewardScore(score=-params.max_penalty * repeated + 0.0, details={"repeated": round(repeated, 6)})


REWARD = Reward(name="repetition", low=-1.0, high=0.0, params=Params, score=score, keys=ReferenceKeys())
