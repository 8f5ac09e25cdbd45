"""Brings a learner to where a run stands: its checkpoint, and the recorded steps after it learned again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from orchestration.errors import DataError, RlvrError
from orchestration.run.ledger.ledger import weights_digest
from orchestration.run.ledger.records import StepRecord, read_record, recorded_steps
from orchestration.run.ports import Learner


async def catch_up(
    learner: Learner,
    run_dir: Path,
    *,
    checkpoint: Path | None,
    learned: int,
    recorded: int,
    on_step: Callable[[int], None] = lambda step: None,
) -> bool:
    """Load a checkpoint and learn steps `learned + 1` to `recorded` again from their records, in order.

    Args:
        checkpoint: None: the learner is where it began.
        learned: updates in the checkpoint.
        on_step: told each step before it is learned again.

    Returns: whether the adapter is the recorded one, bit for bit; True where no step had to be learned again.

    Raises:
        RlvrError: the learner counts otherwise than the records.
    """
    at = learned if checkpoint is None else await learner.load_checkpoint(str(checkpoint))
    last: StepRecord | None = None
    for step in range(at + 1, recorded + 1):
        on_step(step)
        last = read_record(run_dir, step)
        update = await learner.update(last.groups_P)
        if update.step != step:
            raise RlvrError(
                f"the learner made step {update.step} of the record of step {step}: {run_dir} does not fit its "
                f"checkpoints; choose another run_dir"
            )
    if last is None or not last.adapter:
        return True
    return weights_digest(await (await learner.export_adapter()).fetch()) == last.adapter


def records_of(run_dir: Path, first: int, last: int) -> Iterator[StepRecord]:
    """The records that there are of some steps, one at a time; damaged ones are passed over.

    Args:
        run_dir: The run's folder.
        first: Step.
        last: Step, included.

    Returns:
        By step.
    """
    for step in recorded_steps(run_dir):
        if first <= step <= last:
            with suppress(DataError):
                yield read_record(run_dir, step)
