"""Tiny models, made once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.learner.helpers import FAMILIES, make_tiny_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on several threads, most of all on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=FAMILIES)
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Each family in turn."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_model(Path(tmp_path_factory.mktemp("model")) / "llama", "llama")
