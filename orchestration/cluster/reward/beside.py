"""Scoring in the rollout worker's own process: the service is asked once, and whatever fails is left to the driver.

The driver keeps the service alive, waits for one that is away, tries again and gives up; here nothing of that is done,
so that each has one owner. A group that is not scored here goes to the driver as it is, and is scored from there.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from learner.types import SealedGroup
from orchestration.errors import one_line
from orchestration.run.ports import Drawn, Scorer, scored_group
from orchestration.run.scorer import make_scorers
from orchestration.settings.config import RunConfig
from orchestration.settings.rewards import RewardConfig
from orchestration.types import BuiltPrompt
from reward_service.clients.asynchronous import RewardClient
from rollout_server.pickling import pickled_by_fields
from rollout_server.types import Completion

AGAIN_S = 30.0
"""After a failure the service is not asked from here for so long, as each group would only wait for the next one."""


@pickled_by_fields
@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceAddress:
    """How a worker asks the service."""

    url: str
    api_key: str | None = field(default=None, repr=False)
    run_id: str
    """By which the service's log knows the run."""
    places: int
    """Calls that one worker may have under way."""


def is_of_one_host(url: str) -> bool:
    """Whether the name of a service means another one on each host.

    >>> is_of_one_host("http://127.0.0.1:8000"), is_of_one_host("http://localhost"), is_of_one_host("http://10.0.0.7")
    (True, True, False)
    """
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def client_for(
    config: RewardConfig, url: str, api_key: str | None, *, places: int | None = None, max_tries: int | None = None
) -> RewardClient:
    """A client by a run's settings, not connected yet.

    Args:
        places: Calls under way at a time; None: as the settings say.
        max_tries: Of a call; None: as many as `deadline_s` allows.

    Raises:
        ValueError: The URL is malformed.
    """
    return RewardClient(
        url,
        timeout_s=config.timeout_s,
        deadline_s=config.deadline_s,
        max_concurrency=places or config.max_concurrency,
        max_tries=max_tries,
        batch_window_s=config.batch_window_s,
        batch_items=config.batch_items,
        api_key=api_key,
        use_proxy=config.use_proxy,
    )


class BesideScorer:
    """Scores groups of training as the driver's scorer does, of whichever service it is told to ask."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._address: ServiceAddress | None = None
        self._scorer: Scorer | None = None
        self._not_before = 0.0

    async def score(self, built: BuiltPrompt, completions_G: Sequence[Completion], address: ServiceAddress) -> Drawn:
        """The completions with their scores, or with why they have none. Never raises."""
        now = time.perf_counter
        began = now()
        try:
            if self._scorer is None or address != self._address:
                self._scorer, self._address, self._not_before = self._scorer_at(address), address, 0.0
            if began < self._not_before:
                return Drawn(completions_G=completions_G)
            members_G = await self._scorer.score(built.problem, built.text, completions_G)
        except Exception as error:  # the driver meets it too, and knows what to do
            self._not_before = now() + AGAIN_S
            return Drawn(completions_G=completions_G, scoring_s=now() - began, problem=one_line(error, 500))
        return Drawn(group=SealedGroup.of(scored_group(built, members_G)), scoring_s=now() - began)

    def _scorer_at(self, address: ServiceAddress) -> Scorer:
        """The client before it, of a service that is gone, is left to the calls that still have it."""
        client = client_for(self._config.reward, address.url, address.api_key, places=address.places, max_tries=1)
        return make_scorers(self._config, client, run_id=address.run_id)[0]
