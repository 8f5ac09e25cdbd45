"""What all tests share: nothing leaves the machine, quick tests go first, GPU tests only where there is one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

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

GPU_TESTS = Path(__file__).parent / "gpu"


def has_gpu() -> bool:
    """Asked of the driver: importing torch here would cost every test run seconds."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    return subprocess.run([tool, "-L"], capture_output=True, timeout=60, check=False).returncode == 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests go last. Without a GPU its tests are skipped, or fail where RLVR_EXPECT_GPU=1 promises one."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    gpu_items = [item for item in items if item.path.is_relative_to(GPU_TESTS)]
    if gpu_items and os.environ.get("RLVR_EXPECT_GPU") != "1" and not has_gpu():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
