"""Where a stopped run can go on: the newest checkpoint, and the records of the steps after it.

The loop's own state lies inside the learner's checkpoint, RUN/checkpoints/step-000012/state.json: a folder that is
there whole or not at all, so that the two always belong together. A record holds the state after its own step.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from learner.checkpoint import clear_leftovers, find_checkpoint, step_of, write_checkpoint
from learner.types import ScoredGroup
from orchestration.errors import ConfigError, DataError
from orchestration.run.ledger.names import ADAPTER_FOLDER, CHECKPOINTS_FOLDER, COMPLETIONS_FOLDER, METRICS_FILE
from orchestration.run.ledger.records import (
    RunState,
    StepRecord,
    Value,
    packed,
    read_record,
    recorded_steps,
    unpacked,
    write_record,
)
from rollout_server.types import ADAPTER_CONFIG, ADAPTER_WEIGHTS

STATE_FILE, FINISHED_FILE, UNANSWERED_FILE = "state.json", "finished.groups", "unanswered.record"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumable:
    """Where a stopped run can go on."""

    checkpoint: Path | None
    """None: where the learner begins, with records from step 1."""
    learned: int
    """Updates in the checkpoint, as its name says."""
    recorded: int
    """The last step whose record follows on it without a gap; `learned` where there is none."""
    state: RunState
    """After step `recorded`."""
    finished: tuple[ScoredGroup, ...]
    """Groups that were ready when the checkpoint was written, and not learned from."""
    damaged: tuple[str, ...]
    """What is passed over because it is damaged, a sentence each."""
    changed: str = ""
    """Settings that are others now, and may be."""


def state_files(
    state: RunState, finished: Sequence[ScoredGroup], unanswered: StepRecord | None = None
) -> dict[str, bytes]:
    """The loop's files of a checkpoint, name → content.

    Args:
        finished: groups that are ready and not learned from.
        unanswered: the step that the learner was making when nobody waited for its answer any more: whether it is in
            the checkpoint is said by the checkpoint's step.
    """
    files = {STATE_FILE: msgspec.json.format(msgspec.json.encode(state))}
    if finished:
        files[FINISHED_FILE] = packed(list(finished))
    if unanswered is not None:
        files[UNANSWERED_FILE] = packed(unanswered)
    return files


def find_resumable(run_dir: Path, *, from_adapter: bool = False) -> Resumable | None:
    """Where the run in this folder can go on; None when it has made no step yet.

    Only for the run that holds the folder: what a killed process left half done is put away.

    Args:
        from_adapter: go on from the adapter alone where there is nothing else.

    Raises:
        ConfigError: it made steps, and there is nothing to go on from; says what would be lost.
        DataError: there are checkpoints or records but none that can be gone on from.
    """
    root = run_dir / CHECKPOINTS_FOLDER
    clear_leftovers(root)
    found = find_checkpoint(root)
    learned = 0 if found.newest is None else step_of(found.newest)
    records, damage = _records_after(run_dir, learned)
    damaged = (*(f"{sentence}; it is passed over" for sentence in found.damaged), *damage)
    if found.newest is not None:
        state = _read_state(found.newest)
        late = _read_optional(found.newest / UNANSWERED_FILE, StepRecord)
        if late is not None and late.step == learned:  # the answer came too late, the step was made
            write_record(run_dir, late)
            state = late.state
        if records:
            state = records[-1].state
        finished = _read_optional(found.newest / FINISHED_FILE, list[ScoredGroup]) or []
        return Resumable(
            checkpoint=found.newest,
            learned=learned,
            recorded=learned + len(records),
            state=state,
            finished=_still_pending(finished, state.pending),
            damaged=damaged,
        )
    if records:
        return Resumable(
            checkpoint=None,
            learned=0,
            recorded=len(records),
            state=records[-1].state,
            finished=(),
            damaged=damaged,
        )
    if found.damaged and not from_adapter:
        raise DataError(
            f"{'; '.join(found.damaged)}; choose another run_dir to start anew, or resume=adapter to go on from "
            f"{ADAPTER_FOLDER}/ with a new optimizer"
        )
    if (steps := steps_held(run_dir)) == 0:
        return None
    if from_adapter:
        return _from_adapter(run_dir, steps)
    raise ConfigError(
        f"run_dir={str(run_dir)!r} holds {steps} steps and neither a checkpoint nor their records: started anew "
        f"it would lose their metrics, completions and adapter. Choose another run_dir, or resume=adapter to go on "
        f"from its {ADAPTER_FOLDER}/ with a new optimizer"
    )


def steps_held(run_dir: Path) -> int:
    """The last step that metrics, completions or records know of; 0 without any."""
    steps = [0, *recorded_steps(run_dir)]
    for path in (run_dir / COMPLETIONS_FOLDER).glob("step-*.parquet"):
        number = path.stem.removeprefix("step-")
        steps.append(int(number) if number.isdigit() else 0)
    if (run_dir / METRICS_FILE).is_file():
        for line in (run_dir / METRICS_FILE).read_bytes().splitlines():
            try:
                steps.append(int(json.loads(line)["step"]))
            except (ValueError, TypeError, KeyError):
                continue
    return max(steps)


def _records_after(run_dir: Path, step: int) -> tuple[list[StepRecord], list[str]]:
    """The records that follow on `step` without a gap, and what is wrong with the first that does not."""
    records: list[StepRecord] = []
    there = set(recorded_steps(run_dir))
    while (following := step + len(records) + 1) in there:
        try:
            records.append(read_record(run_dir, following))
        except DataError as error:
            return records, [f"{error}; the run goes on after step {following - 1}"]
    return records, []


def _still_pending(finished: Sequence[ScoredGroup], pending: Sequence[str]) -> tuple[ScoredGroup, ...]:
    """Without those that were learned from since, which the records after the checkpoint tell."""
    left = Counter(pending)
    kept = []
    for group in finished:
        if left[group.prompt_id] > 0:
            left[group.prompt_id] -= 1
            kept.append(group)
    return tuple(kept)


def _from_adapter(run_dir: Path, steps: int) -> Resumable:
    """Make a checkpoint of what the adapter's folder holds."""
    folder = run_dir / ADAPTER_FOLDER
    if not all((folder / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        raise ConfigError(f"resume=adapter needs {folder}/, which holds no whole adapter; choose another run_dir")
    drawn = _drawn(list((run_dir / COMPLETIONS_FOLDER).glob("step-*.parquet")))
    state = RunState(step=steps, cursor=drawn, pending=(), before=None, tokens={}, seconds={})
    files = {name: (folder / name).read_bytes() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)}
    root = run_dir / CHECKPOINTS_FOLDER
    checkpoint = write_checkpoint(root, steps, [*files.items(), *state_files(state, ()).items()], keep=1)
    return Resumable(
        checkpoint=checkpoint,
        learned=steps,
        recorded=steps,
        state=state,
        finished=(),
        damaged=(f"going on from {folder} as of step {steps}, with a new optimizer",),
    )


def _drawn(tables: Sequence[Path]) -> int:
    """Problems learned from, by the tables of completions."""
    from pyarrow import parquet

    return sum(len(set(parquet.read_table(path, columns=["prompt_id"])["prompt_id"].to_pylist())) for path in tables)


def _read_state(checkpoint: Path) -> RunState:
    path = checkpoint / STATE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunState)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{path} is not a run's state ({error}); choose another run_dir to start anew") from error


def _read_optional(path: Path, kind: type[Value]) -> Value | None:
    if not path.is_file():
        return None
    try:
        return unpacked(path.read_bytes(), kind)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{path} cannot be read ({error}); choose another run_dir to start anew") from error
