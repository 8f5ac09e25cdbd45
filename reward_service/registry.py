"""The rewards of a service: ours and the operator's own, as the settings say. The server and every worker load them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from reward_service.custom import CustomRewardError, entry_point_specs, load_custom
from reward_service.errors import ServiceStartError
from reward_service.judging.judge import make_judge_reward
from reward_service.rewards import (
    choice,
    code,
    environment,
    exact,
    json_schema,
    last_number,
    length,
    python,
    reasoning_gym,
    regex,
    repetition,
    symbolic,
)
from reward_service.rewards import (
    mathematics as math,
)
from reward_service.rewards.base import Reward, RewardParams
from reward_service.rewards.gsm8k import answer_format, correctness
from reward_service.settings import ServiceSettings

_MODULES = (
    answer_format,
    correctness,
    last_number,
    math,
    symbolic,
    choice,
    exact,
    regex,
    json_schema,
    code,
    python,
    length,
    repetition,
    reasoning_gym,
    environment,
)

BUILTIN_REWARDS: Mapping[str, Reward] = MappingProxyType({module.REWARD.name: module.REWARD for module in _MODULES})

_LIGHT = (answer_format, correctness, last_number, exact, length)
"""Rewards whose time the length of what they read bounds, whatever it says: their patterns go back over no more than a
number's 100 characters, and nothing in them calls a library. 32 kB made to be slow take 30 ms (`exact`), and
12 ms (the others)."""

installed_rewards = cache(entry_point_specs)
"""Looks into every installed package, once in a process."""


def is_light(reward: Reward, params: RewardParams) -> bool:
    """Whether the server may apply it to small items itself, where nothing could stop it.

    Not `exact` with `nfkc`: to put marks into their order takes the square of their number.
    """
    return any(reward is module.REWARD for module in _LIGHT) and not (isinstance(params, exact.Params) and params.nfkc)


def load_rewards(settings: ServiceSettings) -> Mapping[str, Reward]:
    """The rewards of a service. Entry points of installed packages are loaded only when the settings name them: what is
    on the path is not what an operator chose.

    Returns:
        By name: all there are, or those that the setting `rewards` names.

    Raises:
        ServiceStartError: a reward cannot be loaded, or there is none of a name; the message says which and why.
    """
    rewards = dict(BUILTIN_REWARDS)
    for sandboxed in (code.make_code_reward(settings.sandbox), python.make_python_reward(settings.sandbox)):
        rewards[sandboxed.name] = sandboxed
    if settings.judge is not None:
        judge = make_judge_reward(settings.judge)
        rewards[judge.name] = judge
    wanted = None if settings.rewards is None else set(settings.rewards)
    installed = [] if wanted is None else [spec for spec in installed_rewards() if spec.name in wanted]
    try:
        rewards |= load_custom((*settings.custom_rewards, *installed), taken=rewards)
    except CustomRewardError as error:
        raise ServiceStartError(str(error)) from None
    if wanted is None:
        return rewards
    if missing := sorted(wanted - set(rewards)):
        raise ServiceStartError(f"rewards: there is no {missing[0]!r}; there are {', '.join(sorted(rewards))}")
    return {name: rewards[name] for name in rewards if name in wanted}
