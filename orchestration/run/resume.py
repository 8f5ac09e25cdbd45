"""What a stopped run needs to go on: where it was, and the problems it had begun.

The loop's own state lies inside the learner's checkpoint, RUN/checkpoints/step-000012/state.json: a folder that is
there whole or not at all, so that the two always belong together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from learner.checkpoint import clear_leftovers, find_checkpoint
from orchestration.errors import DataError

CHECKPOINTS_FOLDER = "checkpoints"
STATE_FILE = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """The loop's own state, beside the learner's."""

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

    def to_file(self) -> dict[str, bytes]:
        """Name and content, to go into the checkpoint."""
        return {STATE_FILE: json.dumps(asdict(self), indent=2).encode()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumable:
    """Where a stopped run can go on."""

    checkpoint: Path
    state: RunState
    damaged: tuple[str, ...]
    """What is wrong with newer checkpoints, which are passed over; a sentence each."""


def find_resumable(run_dir: Path) -> Resumable | None:
    """The newest whole checkpoint of an earlier, unfinished start in this folder; None when there never was one.

    Only for the run that holds the folder: what a killed process left half done is put away.

    Raises DataError when there are checkpoints but none that can be gone on from.
    """
    root = run_dir / CHECKPOINTS_FOLDER
    clear_leftovers(root)
    found = find_checkpoint(root)
    if found.newest is not None:
        return Resumable(checkpoint=found.newest, state=_read_state(found.newest), damaged=found.damaged)
    if found.damaged:
        raise DataError(f"{'; '.join(found.damaged)}; choose another run_dir to start anew")
    return None


def _read_state(checkpoint: Path) -> RunState:
    path = checkpoint / STATE_FILE
    try:
        raw = json.loads(path.read_bytes())
        return RunState(**{**raw, "pending": tuple(raw["pending"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not a run's state ({error}); choose another run_dir to start anew") from error
