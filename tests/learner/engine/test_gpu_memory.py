"""What the learner asks of PyTorch's allocator on GPUs."""

from __future__ import annotations

import os

import pytest

from learner.engine.gpu_memory import SETTING, let_segments_expand


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")


def test_segments_may_expand() -> None:
    let_segments_expand()
    assert os.environ["PYTORCH_CUDA_ALLOC_CONF"] == SETTING == "expandable_segments:True"


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_what_a_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:256")
    before = dict(os.environ)
    let_segments_expand()
    assert dict(os.environ) == before
