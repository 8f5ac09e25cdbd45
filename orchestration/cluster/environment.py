"""Environment variables that a Ray cluster of ours is started with. Nothing here imports ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

NODE_ENVIRONMENT: Mapping[str, str] = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's default of 15 lets anything else on the machine starve engines and learner: they are the main job.
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Some of Ray's own calls would go through HTTP_PROXY, those on loopback too; empty, it means none to gRPC.
    "grpc_proxy": "",
    # A node that is asked to stop would wait half a minute for requests to Ray Serve.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
"""Of every node."""

ON_LOOPBACK: Mapping[str, str] = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Of a node that no other host belongs to. As on macOS: else Ray puts another of this machine's addresses in place of
loopback, and listens on all of them."""


def with_token(token_file: Path) -> dict[str, str]:
    """Token authentication, switched on by name: a stray ~/.ray/auth_token would do it in silence, with its token."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}


def without_token() -> dict[str, str]:
    """Authentication switched off by name, for a cluster on loopback that ends with its driver."""
    return {"RAY_AUTH_MODE": "disabled"}
