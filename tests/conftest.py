"""What all tests share: nothing leaves the machine, and the order of tests."""

from __future__ import annotations

import os
import signal

import pytest

# Before any of these libraries is imported, and inherited by the processes that tests start.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    VLLM_NO_USAGE_STATS="1",
    RAY_USAGE_STATS_ENABLED="0",
    TOKENIZERS_PARALLELISM="false",  # forking after the tokenizer's threads started warns and may hang
)

# A shell without job control starts what it puts in the background deaf to Ctrl-C, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests go last; but where files are spread over processes, those with clusters go first, or one process would
    be busy with them when all others have ended."""
    if not hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
        return
    with_clusters = {item.path for item in items if item.get_closest_marker("cluster") is not None}
    items.sort(key=lambda item: item.path not in with_clusters)
