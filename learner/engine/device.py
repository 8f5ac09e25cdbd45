"""The device that a rank computes on: its name, what it needs before the first tensor, and its random state."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from learner.engine.cpu_memory import keep_freed_memory
from learner.engine.gpu_memory import let_segments_expand
from learner.errors import LearnerError


def device_called(name: str) -> torch.device:
    """`cpu`, `cuda` or `cuda:1`; raises LearnerError for another."""
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise LearnerError(f"device {name!r} is not supported: cpu or cuda")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def make_ready(device: torch.device, *, num_threads: int | None, world_size: int) -> None:
    """Settles memory and threads of this process.

    Args:
        num_threads: On CPUs; None: this rank's share of the cores.

    Raises:
        LearnerError: There is no such device, as with a torch for CPUs or a driver that is too old.
    """
    if device.type == "cpu":
        keep_freed_memory()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(num_threads or max(1, cores // world_size))
        return
    let_segments_expand()
    number = torch.cuda.device_count()
    if (device.index or 0) >= number:
        raise LearnerError(
            f"the learner was given {device}, and torch {torch.__version__} sees {number} GPUs here: update the "
            f"driver, install a torch built for its CUDA, or set device=cpu"
        )
    torch.cuda.set_device(device)


@contextmanager
def on_half_the_threads() -> Iterator[None]:
    """For a few tokens while an engine beside this rank needs the cores as well: work in small pieces waits after each
    for the last of its threads, and the more so the more of them share a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """`cpu`, and `cuda` where the device is one."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def restore_random_state(device: torch.device, state: Mapping[str, Tensor]) -> None:
    """Goes on from what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
