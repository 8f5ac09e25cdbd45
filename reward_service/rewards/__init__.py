"""One file a reward; each is a pure function of (completion, reference, params)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from reward_service.rewards import (
    choice,
    code,
    exact,
    gsm8k_correctness,
    gsm8k_format,
    json_schema,
    last_number,
    length,
    regex,
    repetition,
    symbolic,
)
from reward_service.rewards import (
    mathematics as math,
)
from reward_service.rewards.base import Reward

_MODULES = (
    gsm8k_format,
    gsm8k_correctness,
    last_number,
    math,
    symbolic,
    choice,
    exact,
    regex,
    json_schema,
    code,
    length,
    repetition,
)

BUILTIN_REWARDS: Mapping[str, Reward] = MappingProxyType({module.REWARD.name: module.REWARD for module in _MODULES})
