"""Where a run's metrics are to be had: one file for each run, which Prometheus looks at by itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from orchestration.storage.atomic import atomic_write
from orchestration.storage.state import state_root


def targets_folder() -> Path:
    return state_root() / "monitor" / "targets"


def describe(run: str, *, ray: Sequence[str], reward_url: str | None) -> list[dict[str, object]]:
    """What Prometheus reads (`file_sd_configs`): the nodes' `host:port`, and the reward service's.

    Args:
        run: Its name, a label of all that is scraped.
        ray: Each node's `host:port`.
        reward_url: None: the service's figures are not scraped.
    """
    groups: list[dict[str, object]] = [{"targets": list(ray), "labels": {"job": "ray"}}]
    if reward_url is not None:
        parts = urlsplit(reward_url)
        labels = {"job": "reward", "run": run, "__scheme__": parts.scheme}
        groups.append({"targets": [parts.netloc.rpartition("@")[2]], "labels": labels})
    return groups


class Announcement:
    """Of a run whose driver is this process, `<run>-<pid>`; it goes with it.

    Args:
        run_id: ends with the driver's process id.
    """

    def __init__(self, run_id: str) -> None:
        self._path = targets_folder() / f"{run_id}.json"
        self._written = b""

    def say(self, groups: list[dict[str, object]]) -> None:
        """Write the file, unless it says so already.

        Args:
            groups: As `describe` gives them.

        Raises:
            OSError: It cannot be written.
        """
        content = json.dumps(groups, indent=1).encode()
        if content != self._written:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._path, content)
            self._written = content

    def take_back(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def announced() -> list[str]:
    """The runs under way that say where their metrics are. Files of drivers that were killed are removed."""
    found = []
    for path in sorted(targets_folder().glob("*.json")):
        run, _, pid = path.stem.rpartition("-")
        if not pid.isdigit():
            continue  # a cluster's, which `rlvr monitor up ADDRESS` has written
        if psutil.pid_exists(int(pid)):
            found.append(run)
        else:
            path.unlink(missing_ok=True)
    return found
