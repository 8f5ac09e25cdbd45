"""What all tests share: nothing leaves the machine, and quick tests go first."""

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests go last."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
