"""What the processes of a training job's host have in their environment beyond what the request says."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from orchestration.storage.aws import client, configured_region, explained
from orchestration.submit.sagemaker.host.facts import HostError

NATIVE_DRIVER = 580
"""The oldest series that CUDA 13 runs on by itself."""
LEAST_DRIVER = 535
"""The oldest that it runs on by the compatibility libraries."""
_LOADED_DRIVER = Path("/sys/module/nvidia/version")
_COMPATIBILITY = Path("/usr/local/cuda/compat")


def cuda_compatibility(driver: Path = _LOADED_DRIVER, libraries: Path = _COMPATIBILITY) -> dict[str, str]:
    """The path of CUDA's compatibility libraries, where the host's driver is older than the image's CUDA.

    Beside a newer driver they would be in the way, so the image cannot have them in its path by itself.

    Raises HostError for a driver that they do not help either.
    """
    try:
        version = driver.read_text(encoding="utf-8").strip()
        series = int(version.partition(".")[0])
    except (OSError, ValueError):  # no GPU here
        return {}
    if series >= NATIVE_DRIVER:
        return {}
    if series < LEAST_DRIVER or not libraries.is_dir():
        raise HostError(
            f"NVIDIA's driver is {version}, and CUDA 13 needs {NATIVE_DRIVER} or later, or {LEAST_DRIVER} or later and "
            f"the libraries of {libraries}: take another instance type, or an image built for CUDA 12"
        )
    others = os.environ.get("LD_LIBRARY_PATH")
    return {"LD_LIBRARY_PATH": f"{libraries}:{others}" if others else str(libraries)}


def fetch_secrets(secrets: Mapping[str, str], endpoints: Mapping[str, str]) -> dict[str, str]:
    """Values of environment variables, from Secrets Manager and SSM's parameters.

    Args:
        secrets: variable → secretsmanager:NAME or ssm:NAME. A secret that is a JSON object holds the value under the
            variable's name.
        endpoints: of AWS's services, where they are not the usual ones.

    Raises SubmitError when AWS refuses, HostError when a secret has no text of that name.
    """
    values = {}
    for variable, place in secrets.items():
        service, _, name = place.partition(":")
        region = name.split(":")[3] if name.startswith("arn:") else configured_region(None)
        aws = client(service, str(region), endpoints.get(service))
        with explained(f"fetching {variable} from {place}"):
            if service == "ssm":
                value = aws.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"]
            else:
                value = _text(aws.get_secret_value(SecretId=name).get("SecretString"), variable, place)
        values[variable] = str(value)
    return values


def _text(secret: str | None, variable: str, place: str) -> str:
    try:
        tree = json.loads(secret or "")
    except ValueError:
        tree = secret
    value = tree.get(variable) if isinstance(tree, dict) else secret
    if not isinstance(value, str) or not value:
        raise HostError(f"{place} holds no text for {variable}: store it as plain text, or as JSON under that name")
    return value
