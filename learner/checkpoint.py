"""A learner's state on disk: written beside, then renamed, so that a folder with the final name is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from learner.errors import LearnerError

STATE_NAME = "learner_state.pt"


def write_checkpoint(folder: str, state: dict[str, Any], files: Iterable[tuple[str, bytes]]) -> None:
    """Writes `state` (tensors and plain values) and `files` to `folder`, replacing what is there."""
    final = Path(folder)
    partial = final.with_name(f".{final.name}.partial-{os.getpid()}")
    replaced = final.with_name(f".{final.name}.replaced-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files:
        (partial / name).write_bytes(content)
    with (partial / STATE_NAME).open("wb") as stream:
        torch.save(state, stream)
        stream.flush()
        os.fsync(stream.fileno())
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def read_checkpoint(folder: str) -> dict[str, Any]:
    """The state that `write_checkpoint` wrote. Raises LearnerError where there is none."""
    path = Path(folder) / STATE_NAME
    if not path.is_file():
        raise LearnerError(f"{folder!r} holds no learner checkpoint: {STATE_NAME} is missing")
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert isinstance(state, dict)
    return state
