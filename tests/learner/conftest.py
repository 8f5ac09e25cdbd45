"""Tiny models, by their folders."""

from __future__ import annotations

import pytest
import torch

from tests.models import FAMILIES, random_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on several threads, most of all on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=FAMILIES)
def tiny_model(request: pytest.FixtureRequest) -> str:
    """Each family in turn."""
    return str(random_model(request.param))


@pytest.fixture(scope="session")
def llama() -> str:
    return str(random_model("llama"))
