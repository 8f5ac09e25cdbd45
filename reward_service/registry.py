"""The rewards of a service: ours and the operator's own, as the settings say. The server and every worker load them."""

from __future__ import annotations

from collections.abc import Mapping

from reward_service.custom import CustomRewardError, entry_point_specs, load_custom
from reward_service.errors import ServiceStartError
from reward_service.judging.judge import make_judge_reward
from reward_service.rewards import BUILTIN_REWARDS
from reward_service.rewards.base import Reward
from reward_service.rewards.code import make_code_reward
from reward_service.settings import ServiceSettings


def load_rewards(settings: ServiceSettings) -> Mapping[str, Reward]:
    """By name: all there are, or those that the settings name. ServiceStartError says what cannot be loaded.

    Installed entry points are loaded only when they are named: what is on the path is not what an operator chose.
    """
    rewards = dict(BUILTIN_REWARDS)
    code = make_code_reward(settings.sandbox)
    rewards[code.name] = code
    if settings.judge is not None:
        judge = make_judge_reward(settings.judge)
        rewards[judge.name] = judge
    wanted = None if settings.rewards is None else set(settings.rewards)
    installed = [] if wanted is None else [spec for spec in entry_point_specs() if spec.name in wanted]
    try:
        rewards |= load_custom((*settings.custom_rewards, *installed), taken=rewards)
    except CustomRewardError as error:
        raise ServiceStartError(str(error)) from None
    if wanted is None:
        return rewards
    if missing := sorted(wanted - set(rewards)):
        raise ServiceStartError(f"rewards: there is no {missing[0]!r}; there are {', '.join(sorted(rewards))}")
    return {name: rewards[name] for name in rewards if name in wanted}
