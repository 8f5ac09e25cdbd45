"""What a stopped run needs to go on: where it was, and the problems it had begun."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestration.errors import DataError
from orchestration.run_folder import atomic_write

STATE_FILE = "state.json"
CHECKPOINT_FOLDER = "checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """The loop's own state; the learner's lies in the checkpoint folder beside it."""

    step: int
    """Updates made."""
    cursor: int
    """Problems drawn from the training data."""
    pending: tuple[str, ...]
    """Ids of problems that were drawn but not learned from; they come first when the run goes on."""
    before: Mapping[str, Any] | None
    """Held-out accuracy before the first step, so that a resumed run compares with it."""
    tokens: Mapping[str, int]
    """Counts of tokens so far, by kind."""
    seconds: Mapping[str, float]
    """Wall time so far, by phase."""


def write_state(folder: Path, state: RunState) -> None:
    """Write it atomically. The learner's checkpoint must have been written before."""
    atomic_write(folder / STATE_FILE, json.dumps(asdict(state), indent=2).encode())


def read_state(folder: Path) -> RunState | None:
    """The state of an earlier, unfinished start in this folder; None when there is none.

    Raises DataError when the file is there but not readable as a state.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_bytes())
        return RunState(**{**raw, "pending": tuple(raw["pending"])})
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); choose another run_dir to start anew") from error
