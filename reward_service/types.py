"""What crosses the wire, as plain frozen data: the scoring and our client share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec


class Reason(StrEnum):
    """Why an item has no score. A score of null is "not known", never "wrong"."""

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
class RewardSpec:
    """One reward a request asks for."""

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
