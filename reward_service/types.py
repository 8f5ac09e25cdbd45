"""What crosses the wire, as plain frozen data: the scoring and our client share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, Final

import msgspec

ANSWER_PREFIX: Final = "#### The final answer is"
"""How an answer line begins unless a request says otherwise: the AWS article's format for GSM8K."""

JUDGE: Final = "judge"
"""The reward that a language model gives."""


class Reason(StrEnum):
    """Why an item has no score. A score of null is "not known", never "wrong"."""

    UNREADABLE_ITEM = "unreadable_item"
    """The item holds a text or a number that cannot be read: half of a surrogate pair, a number out of range."""
    INVALID_REFERENCE = "invalid_reference"
    """The reference is missing or is not what this reward compares with."""
    VERIFIER_ERROR = "verifier_error"
    """The reward itself failed."""
    TIMEOUT = "timeout"
    """The reward did not end before its deadline."""
    OUT_OF_MEMORY = "out_of_memory"
    """The reward wanted more memory than a worker may have."""
    UNAVAILABLE = "unavailable"
    """Something the reward needs (a sandbox, a judge) could not be had."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceKeys:
    """Which keys of an item's reference a reward reads, with the parameters it is asked for with."""

    required: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    """At least one of these is needed."""
    optional: tuple[str, ...] = ()
    """Read where they are there, or with other parameters."""
    metadata: tuple[str, ...] = ()
    """Keys of the item's metadata that are needed."""

    def missing(self, item: RewardItem) -> tuple[str, ...]:
        """What `item` lacks, as a sentence names it: `"schema"`, `one of "stdio", "tests"`."""
        reference = item.reference or {}
        missing = [f'"{key}"' for key in self.required if key not in reference]
        if self.any_of and not any(key in reference for key in self.any_of):
            missing.append("one of " + ", ".join(f'"{key}"' for key in self.any_of))
        return (*missing, *(f'metadata\'s "{key}"' for key in self.metadata if key not in item.metadata))


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardDescription:
    """What a reward is, for who chooses one."""

    name: str
    description: str
    low: float
    high: float
    params: Mapping[str, Any]
    """JSON schema of its parameters."""
    reference: ReferenceKeys | None
    """What it reads with its parameters' defaults; None: a reward of somebody's own that does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lack:
    """Something that a reward needs and an item does not give."""

    reward: str
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardSpec:
    """One reward a request asks for."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}
    """Where it is a setting, a misspelt key is an error."""

    name: str
    weight: float = 1.0
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardItem:
    """One completion to be scored."""

    completion: str
    reference: Mapping[str, Any] | None
    """What a verifier needs to check the answer, e.g. `{"final_answer": "72"}`."""
    prompt: str = ""
    id: str = ""
    group: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class RewardScore(msgspec.Struct, frozen=True, kw_only=True):
    """What one reward says of one item: a score, or None with the reason.

    A struct, as there are tens of thousands a second: it is made and encoded several times as fast as a dataclass.
    """

    score: float | None
    reason: str | None = None
    details: Mapping[str, Any] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemResult:
    """What all rewards of a request say of one item."""

    id: str
    total: float | None
    """Sum of weight * score over the rewards that gave a score; None if none did."""
    rewards: Mapping[str, RewardScore]
