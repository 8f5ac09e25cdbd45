"""Runs and clusters of these tests fork their engines from one process, which has imported vLLM once."""

from __future__ import annotations

import pytest

from orchestration.machine.facts import collect
from rollout_server.worker import start_fork_server


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Those below this process find the server by their environment."""
    if item.get_closest_marker("cluster") is not None and not collect().gpus:
        start_fork_server()
