"""How long prompts and completions are: stated, or drawn from what a run recorded."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from learner.types import ScoredCompletion, ScoredGroup
from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.types import Completion, FinishReason

EXTENDED_TOKEN = 0
"""Stands for tokens that a longer limit would have let a recorded completion have."""


class Lengths(Protocol):
    """What a simulated run samples."""

    def group(self, prompt_id: str, num_generations: int, longest: int, random_: random.Random) -> ScoredGroup:
        """One prompt with its scored completions, none of more than `longest` tokens."""
        ...

    def distinct_tokens(self, groups: Sequence[ScoredGroup]) -> int:
        """Tokens that a learner's prefix tree of these groups has."""
        ...

    def describe(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StatedLengths:
    """Log-normal completions, cut off at the limit. No completion shares tokens with another, no group is flat."""

    prompt_tokens: int
    shared_prompt_tokens: int
    """Of these, the beginning that all prompts have: instruction and worked examples."""
    mean: float
    """Of a completion, tokens, before it is cut off."""
    deviation: float
    """Standard deviation over the mean."""
    made: dict[tuple[int, int], ScoredCompletion] = field(default_factory=dict, repr=False, compare=False)

    def group(self, prompt_id: str, num_generations: int, longest: int, random_: random.Random) -> ScoredGroup:
        variance = math.log1p(self.deviation**2)  # of the logarithm, from mean and deviation of the number
        centre, width = math.log(self.mean) - variance / 2, math.sqrt(variance)
        lengths = [min(longest, max(1, round(random_.lognormvariate(centre, width)))) for _ in range(num_generations)]
        return ScoredGroup(
            prompt_id=prompt_id,
            prompt_token_ids=TokenIds((EXTENDED_TOKEN,) * self.prompt_tokens),
            members=tuple(self._member(length, reward % 2, length >= longest) for reward, length in enumerate(lengths)),
        )

    def _member(self, length: int, reward: int, truncated: bool) -> ScoredCompletion:
        known = self.made.get((length, reward))
        if known is None:
            completion = Completion(
                prompt_id="stated",
                token_ids=TokenIds((EXTENDED_TOKEN,) * length),
                sampling_logprobs=Logprobs((0.0,) * length),
                text="",
                finish_reason=FinishReason.LENGTH if truncated else FinishReason.STOP,
                adapter_version=0,
            )
            known = ScoredCompletion(completion=completion, rewards=(float(reward),), total=float(reward))
            self.made[length, reward] = known
        return known

    def distinct_tokens(self, groups: Sequence[ScoredGroup]) -> int:
        own = self.prompt_tokens - self.shared_prompt_tokens
        return self.shared_prompt_tokens + sum(own + sum(lengths_of(group)) for group in groups)

    def describe(self) -> str:
        return (
            f"stated: prompts of {self.prompt_tokens} tokens, {self.shared_prompt_tokens} of them common to all; "
            f"completions of {self.mean:g} ± {self.mean * self.deviation:g}, log-normal"
        )


class RecordedLengths:
    """Groups that a run recorded, drawn with replacement.

    Where the limit is longer than the run's, a completion that its limit cut off goes on until it ends by the rate at
    which those of the longer half ended (their hazard, Kaplan and Meier's estimate taken as constant).
    """

    def __init__(self, groups: Sequence[ScoredGroup], longest: int) -> None:
        self._groups, self._longest = groups, longest
        members = [member for group in groups for member in group.members]
        self._mean = math.fsum(len(member.completion.token_ids) for member in members) / len(members)
        half = longest / 2
        exposed = math.fsum(max(0.0, len(member.completion.token_ids) - half) for member in members)
        ended = sum(len(member.completion.token_ids) > half and not member.truncated for member in members)
        self._hazard = ended / exposed if exposed else 1.0

    def group(self, prompt_id: str, num_generations: int, longest: int, random_: random.Random) -> ScoredGroup:
        recorded = random_.choice(self._groups)
        members = list(recorded.members)
        while len(members) < num_generations:
            members += recorded.members
        chosen = random_.sample(members, num_generations)
        return replace(recorded, members=tuple(self._cut(member, longest, random_) for member in chosen))

    def _cut(self, member: ScoredCompletion, longest: int, random_: random.Random) -> ScoredCompletion:
        tokens, length = member.completion.token_ids, len(member.completion.token_ids)
        if length > longest:
            tokens = tokens[:longest]
        elif member.truncated and longest > self._longest:
            more = math.ceil(random_.expovariate(self._hazard)) if self._hazard else longest
            tokens = tokens + TokenIds((EXTENDED_TOKEN,) * min(more, longest - length))
        else:
            return member
        completion = replace(member.completion, token_ids=tokens, sampling_logprobs=Logprobs((0.0,) * len(tokens)))
        return replace(member, completion=completion)

    def distinct_tokens(self, groups: Sequence[ScoredGroup]) -> int:
        return distinct_tokens(groups)

    def describe(self) -> str:
        return f"drawn from {len(self._groups)} recorded groups, {self._mean:.0f} tokens a completion"


def lengths_of(group: ScoredGroup) -> list[int]:
    """Tokens of each completion."""
    return [len(member.completion.token_ids) for member in group.members]


def distinct_tokens(groups: Sequence[ScoredGroup]) -> int:
    """Tokens of the groups' prefix tree: all but those that the sequence before, in order, begins with too."""
    sequences = sorted(
        (*group.prompt_token_ids, *member.completion.token_ids) for group in groups for member in group.members
    )
    total = 0
    before: tuple[int, ...] = ()
    for sequence in sequences:
        total += len(sequence) - _common(before, sequence)
        before = sequence
    return total


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Tokens of the common beginning, by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
