"""What a service says of its rewards, so that a wrong name or a missing column is found before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from reward_service.clients.asynchronous import authorities, is_distrust, key_header, named, parse_url, shown_url
from reward_service.clients.blocking import ClientSettings, run_beside
from reward_service.clients.errors import RequestRefusedError, RewardServiceUnavailable
from reward_service.clients.wire import error_detail
from reward_service.types import RewardSpec

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10.0

Rewards = Mapping[str, Mapping[str, Any]]
"""What `GET /v1/rewards` says, by name."""


def ask_for_rewards(settings: ClientSettings) -> Rewards | None:
    """The rewards that are served; None, with a warning, if nobody answers. RequestRefusedError for a bad key,
    RewardServiceUnavailable for a certificate that is not trusted."""
    url, timeout_s = parse_url(settings.url), min(_TIMEOUT_S, settings.timeout_s)
    try:
        answer = run_beside(_get(settings), timeout_s)
        if answer.status_code == httpx.codes.OK:
            return {reward["name"]: reward for reward in msgspec.json.decode(answer.content)["rewards"]}
        why = f"status {answer.status_code}, {error_detail(answer.content)}"
    except TimeoutError:
        why = f"no answer within {timeout_s:g} s"
    except (httpx.RequestError, ValueError, KeyError, TypeError) as error:
        why = named(error)
        if is_distrust(error):
            raise RewardServiceUnavailable(f"reward service {shown_url(url)}: {why}") from None
    else:
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise RequestRefusedError(f"reward service {shown_url(url)} refused the request: {why}", answer.status_code)
    logger.warning("reward service %s: its rewards and their keys are not checked yet: %s", shown_url(url), why)
    return None


async def _get(settings: ClientSettings) -> httpx.Response:
    """Its time is for the caller to bound: httpx's limits are for each read, which a drip would renew."""
    verify = authorities(settings.ca_file)
    headers = key_header(settings.api_key)
    async with httpx.AsyncClient(headers=headers, timeout=None, trust_env=settings.use_proxy, verify=verify) as http:
        return await http.get(f"{settings.url.rstrip('/')}/v1/rewards")


def check_names(rewards: Rewards, specs: Sequence[RewardSpec]) -> None:
    """Looks whether all rewards are served.

    Args:
        rewards: What the service has, by name.
        specs: What is asked of it.

    Raises:
        ValueError: The first that is not, with the names of those that are.
    """
    for spec in specs:
        if spec.name not in rewards:
            raise ValueError(f"there is no reward {spec.name!r}; the service has {', '.join(sorted(rewards))}")


def check_keys(rewards: Rewards, specs: Sequence[RewardSpec], keys: Collection[str], columns: Collection[str]) -> None:
    """ValueError where the references' keys are not what a reward reads; what its parameters say it need not read.

    Args:
        rewards: what is served.
        specs: what is asked for.
        keys: what the references will have.
        columns: what the data set has, for the message.
    """
    for spec in specs:
        reads = rewards.get(spec.name, {}).get("reference") or {}
        given = {*keys, *spec.params}
        missing = [f'"{key}"' for key in reads.get("required", ()) if key not in given]
        if (any_of := reads.get("any_of")) and not given & {*any_of}:
            missing.append("one of " + ", ".join(f'"{key}"' for key in any_of))
        if missing:
            raise ValueError(
                f"the reward {spec.name!r} reads {missing[0]} of a reference, and the references have"
                f" {', '.join(keys) or 'nothing'}; say which column it is by reference={{...}}: there are"
                f" {', '.join(columns) or 'none'}"
            )
