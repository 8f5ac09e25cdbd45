"""Who computes: what the last bits of an update depend on."""

from __future__ import annotations

import platform
from contextlib import suppress
from functools import cache

import torch


def computers(device: torch.device, world_size: int) -> str:
    """Ranks, threads of each, and the kind of processor, for people."""
    ranks = f"{world_size} rank{'s' * (world_size != 1)}"
    if device.type == "cuda":
        return f"{ranks} on {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{ranks} of {threads} thread{'s' * (threads != 1)} on {_processor()}"


@cache
def _processor() -> str:
    with suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.machine()
