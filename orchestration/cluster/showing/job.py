"""What the jobs page says of the job that this process is the driver of."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import ray
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

_NAMESPACE = b"job"


def submission_id() -> str | None:
    """Of the job that this process is the driver of; None for a driver that nobody submitted."""
    given = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    try:
        found = json.loads(given).get("metadata", {}).get("job_submission_id")
    except (ValueError, AttributeError):
        return None
    return None if found is None else str(found)


def show_job(name: str, message: str, metadata: Mapping[str, str]) -> None:
    """Put a line and figures beside a submitted job that runs: `message` in its row, `metadata` on its page.

    Ray reads a job's record whenever a page asks, and writes it when the job begins and ends; its other fields stay.

    Args:
        name: The job's submission id; one that does not run is left alone.
        message: One line.
        metadata: Added to what is there; values are text.
    """
    key = f"_ray_internal_job_info_{name}".encode()
    kept = _internal_kv_get(key, namespace=_NAMESPACE)
    record = json.loads(kept) if kept else {}
    if record.get("status") == "RUNNING":
        record["message"] = message
        record["metadata"] = {**(record.get("metadata") or {}), **metadata}
        _internal_kv_put(key, json.dumps(record).encode(), overwrite=True, namespace=_NAMESPACE)


def metric_targets() -> list[str]:
    """`host:port` of every living node's metrics."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"] > 0]
    return [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes]
