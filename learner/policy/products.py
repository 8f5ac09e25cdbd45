"""Matrix products whose sums are not rounded to 16 bits."""

from __future__ import annotations

import torch
from torch import Tensor

_WHOLE = "cuda"
"""The device whose `torch.mm` knows `out_dtype`: it adds up in float32 and need not round the sum."""


def whole_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, as exact as the device gives it without more work.

    Returns:
        Of 16-bit numbers float32 where the device gives its sums whole (a GPU), else rounded to their precision.
    """
    if a.device.type == _WHOLE and a.dtype.itemsize < 4:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a @ b


def float32_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, whatever the device: of 16-bit numbers, every term is exact there."""
    product = whole_product(a, b) if a.device.type == _WHOLE else a.float() @ b.float()
    return product.float()
