"""Memory of GPUs that does not fall to pieces.

Micro-batches are of many sizes. In segments of a fixed size PyTorch's allocator is left with pieces between which a
large tensor finds no room, though enough is free; segments that grow have no such ends.
"""

from __future__ import annotations

import os

SETTING = "expandable_segments:True"
_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The second is the older name, which every PyTorch reads."""


def let_segments_expand() -> None:
    """Asks for it in the environment, which PyTorch reads at its first allocation on a GPU. What a user has set there
    stays."""
    if not any(os.environ.get(name) for name in _NAMES):
        os.environ[_NAMES[1]] = SETTING
