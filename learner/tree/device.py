"""From the host to the device without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(values: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Values on a device, without waiting for it.

    Returns:
        A copy, or on CPUs the values themselves. To a GPU from pinned memory: a copy from any other waits until the GPU
        has done what was asked before.
    """
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
