"""One file a reward; each is a pure function of (completion, reference, params)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from reward_service.rewards import gsm8k_correctness, gsm8k_format, last_number
from reward_service.rewards.base import Reward

BUILTIN_REWARDS: Mapping[str, Reward] = MappingProxyType(
    {module.REWARD.name: module.REWARD for module in (gsm8k_format, gsm8k_correctness, last_number)}
)
