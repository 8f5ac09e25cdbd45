"""A run's paths, which are those of the machine that submits, as another place has them. Pure, but for looking at
which files there are here."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestration.errors import ConfigError
from orchestration.models.resolve import EMBEDDED_MODELS
from orchestration.settings.config import RunConfig
from reward_service.settings import put


def with_settings(run: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """The run with dotted settings changed, checked as a whole again."""
    tree = run.model_dump(mode="json")
    for dotted, value in settings.items():
        put(tree, dotted, value)
    return RunConfig.model_validate(tree)


def data_files(run: RunConfig) -> dict[str, str]:
    """Files that the run reads, by the setting that names them."""
    return {f"data.{name}": path for name, path in run.data.files().items()}


def local_model_folder(run: RunConfig) -> Path | None:
    """The folder of this machine that `model.name` is; None when it is embedded or of the hub."""
    folder = Path(run.model.name).expanduser()
    return folder if run.model.name not in EMBEDDED_MODELS and folder.is_dir() else None


def paths_on_disk(run: RunConfig) -> dict[str, str]:
    """What the run reads from a disk, its reward service's settings apart, by the setting that names it."""
    paths = {setting: path for setting, path in data_files(run).items() if not path.startswith("s3://")}
    if run.model.name.startswith(("/", ".", "~")) or local_model_folder(run) is not None:
        paths["model.name"] = run.model.name
    if run.reward.api_key_file is not None:
        paths["reward.api_key_file"] = str(run.reward.api_key_file)
    return paths


def refuse_what_stays_here(run: RunConfig, *, place: str, is_here: bool = False) -> None:
    """Refuse what cannot work, or leaks, in a job at `place`, which is another machine unless `is_here`.

    Args:
        run: Not yet changed for its place.
        place: Named in the message.
        is_here: It is this machine.

    Raises:
        ConfigError: Naming the setting and what to do instead.
    """
    if run.ray_address not in (None, "auto"):  # auto: the configuration of a run that was submitted before
        raise ConfigError(f"ray_address={run.ray_address!r} is for `rlvr train`: a submitted run uses that of {place}")
    if run.reward.api_key is not None:
        raise ConfigError(
            "reward.api_key would be stored where others can read it; put the key into a file there and set "
            "reward.api_key_file to its path"
        )
    if run.reward.url is not None and is_loopback(run.reward.url) and not is_here:
        raise ConfigError(
            f"reward.url={run.reward.url!r} is this machine, which {place} does not reach; leave it out, and the run "
            f"starts a service of its own, or give an address that is reached from there"
        )


def refuse_relative_paths(run: RunConfig, *, place: str) -> None:
    """Refuse paths that only mean something here: what a job on `place` reads must lie there, or on S3.

    Raises ConfigError naming the setting.
    """
    for setting, path in paths_on_disk(run).items():
        if not path.startswith(("/", "~")):
            raise ConfigError(
                f"{setting}={path!r} is a path of this machine; give the whole path it has on {place}, or s3://… "
                f"(`rlvr prepare RECIPE --upload s3://…` puts data there)"
            )


def is_loopback(url: str) -> bool:
    """Whether a URL's host is the machine of whoever reads it."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified  # to connect to 0.0.0.0 is to connect to oneself
