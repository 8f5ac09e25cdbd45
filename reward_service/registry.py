"""The rewards of a service: ours and the operator's own, as the settings say. The server and every worker load them."""

from __future__ import annotations

from collections.abc import Mapping

from reward_service.errors import ServiceStartError
from reward_service.rewards import BUILTIN_REWARDS
from reward_service.rewards.base import Reward
from reward_service.settings import ServiceSettings


def load_rewards(settings: ServiceSettings) -> Mapping[str, Reward]:
    """By name. ServiceStartError for a name that nothing has."""
    rewards = dict(BUILTIN_REWARDS)
    if settings.rewards is None:
        return rewards
    if missing := [name for name in settings.rewards if name not in rewards]:
        raise ServiceStartError(f"rewards: there is no {missing[0]!r}; there are {', '.join(sorted(rewards))}")
    return {name: rewards[name] for name in settings.rewards}
