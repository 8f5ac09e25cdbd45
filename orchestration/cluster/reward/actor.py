"""The reward service inside a cluster: what Ray hosts on its node. Nothing here imports ray."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestration.cluster.upkeep.whereabouts import Whereabouts, hear_sigterm
from reward_service.child import RunningService, start_in_subprocess
from reward_service.errors import KeysError, ServiceStartError, describe_validation
from reward_service.keys import add_key
from reward_service.settings import ServiceSettings
from rollout_server.forking.leftovers import own_folder

LOG_NAME = "reward_service.log"
_POLL_S = 0.5
_TAIL_CHARS = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterNode:
    """A node, as the cluster knows it."""

    node_id: str
    address: str
    """Its IP address, by which the other nodes reach it."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """What it has in all: `CPU`, `GPU` and the names that an operator gave."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceEndpoint:
    """Where the service answers, and the key it demands."""

    url: str
    api_key: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceOrder:
    """What the driver asks of the actor."""

    settings: Mapping[str, Any]
    """Of the service; those left out are filled in on its node, whose cores count."""
    num_cpus: float
    """Cores reserved; so many scoring processes, unless the settings say."""
    driver_node_id: str
    log_folder: str
    """The run's, on the driver's node."""
    start_timeout_s: float


class RewardServiceActor:
    """Holds a service as its child process, which ends with it, however that comes about.

    The service listens on the node's address and demands a key that is made here: a file in a folder of its own has
    the key's hash, and the key itself is nowhere but in the answer to `start`. Calls overlap: `watch` waits while
    `shutdown` comes.
    """

    def __init__(self, name: str, here: Callable[[], ClusterNode]) -> None:
        self._name, self._here = name, here
        self._service: RunningService | None = None
        self._folder: Path | None = None
        self._forwarded: int | None = None  # bytes of the log that stdout has; None: the log lies in the run folder
        self._stopping = False

    def __repr__(self) -> str:  # Ray puts it in front of log lines
        return self._name

    def where(self) -> str:
        return f"node {self._here().address}, {Whereabouts.here('')}"

    def process(self) -> Whereabouts:
        return Whereabouts.here(self._here().node_id)

    def start(self, order: ServiceOrder) -> ServiceEndpoint:
        """Returns when it is ready to score. Raises ServiceStartError, with the end of its log, if it does not get so.

        Its log goes into the run's log folder on the driver's node, and to this process' output elsewhere.
        """
        hear_sigterm()
        node = self._here()
        self._folder = folder = own_folder("reward", longest_name=len(LOG_NAME))
        if node.node_id == order.driver_node_id:
            log_path = Path(order.log_folder) / LOG_NAME
        else:
            log_path, self._forwarded = folder / LOG_NAME, 0
        try:
            _, api_key = add_key(folder / "keys.json", "run")
            settings = ServiceSettings.model_validate(
                {
                    "num_workers": math.ceil(order.num_cpus),
                    **order.settings,
                    "host": node.address,
                    "port": 0,
                    "keys_file": folder / "keys.json",
                }
            )
            self._service = start_in_subprocess(settings, log_path=log_path, timeout_s=order.start_timeout_s)
        except (KeysError, ValidationError, ServiceStartError, OSError) as error:
            self.shutdown()
            reason = describe_validation(error) if isinstance(error, ValidationError) else error
            raise ServiceStartError(f"the reward service did not start on {self.where()}: {reason}") from None
        return ServiceEndpoint(url=self._service.url, api_key=api_key)

    def watch(self, wait_s: float) -> str | None:
        """Why the service ended; None when it runs after `wait_s`, or was stopped."""
        assert self._service is not None, "start() comes first"
        deadline = time.monotonic() + wait_s
        while not self._stopping:
            exit_code = self._service.process.poll()
            self._forward_log()
            if exit_code is not None:
                log = self._service.log_path.read_text(encoding="utf-8", errors="replace")
                return f"exit code {exit_code}; the end of its log: {' '.join(log[-_TAIL_CHARS:].split()) or '(empty)'}"
            if time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        return None

    def shutdown(self) -> None:
        """Ends the service in order, and removes its folder."""
        self._stopping = True
        if self._service is not None:
            self._service.stop()
            self._forward_log()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _forward_log(self) -> None:
        if self._forwarded is None or self._service is None or not self._service.log_path.exists():
            return
        with self._service.log_path.open("rb") as log:
            log.seek(self._forwarded)
            news = log.read()
        self._forwarded += len(news)
        sys.stdout.write(news.decode(errors="replace"))
        sys.stdout.flush()
