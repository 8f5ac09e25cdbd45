"""What GPUs do, on CPUs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from learner.policy import products


@pytest.fixture
def whole_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products of 16-bit numbers into float32, by the call that is made on GPUs, in a kernel for CPUs."""

    def into(a: Tensor, b: Tensor, out_dtype: torch.dtype) -> Tensor:
        assert (a.dtype, b.dtype, out_dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        return a.float() @ b.float()

    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("mm.dtype", into, "CPU")
        monkeypatch.setattr(products, "_WHOLE", "cpu")
        yield
