"""Keeps a run's steps and state while it runs: records and tables, the adapter, and checkpoints, beside the steps.

What is begun here is written while the next batch is generated; whoever needs the learner, or the end, waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from learner.checkpoint import checkpoint_steps
from learner.errors import LearnerError
from orchestration.concurrency import kept_on, unless_set
from orchestration.errors import NoRoomError
from orchestration.run.ledger.folder import RunFolder
from orchestration.run.ledger.names import CHECKPOINTS_FOLDER
from orchestration.run.ledger.records import StepRecord, prune_records
from orchestration.run.ledger.room import when_there_is_room
from orchestration.run.ports import AdapterHandle, Learner
from orchestration.run.reporter import Reporter
from orchestration.settings.config import RunConfig
from rollout_server.types import ADAPTER_WEIGHTS, AdapterPayload

Row = Mapping[str, Any]


class Ledger:
    """The books of one run."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, learner: Learner, reporter: Reporter, stop: asyncio.Event
    ) -> None:
        self._config, self._folder, self._learner, self._reporter = config, folder, learner, reporter
        self._stop = stop
        self._step: asyncio.Task[None] | None = None
        self._row: asyncio.Future[Row] | None = None
        self._checkpoint: asyncio.Task[None] | None = None
        self._saved_at, self._is_busy = time.monotonic(), False

    def begin_step(self, record: StepRecord, adapter: asyncio.Future[AdapterHandle]) -> None:
        """Write a step that the learner has made, and its adapter when that is there. Once the run is to stop it goes
        without an adapter that takes long. `end_step` follows."""
        assert self._step is None, "the step before is still being written"
        self._row = asyncio.get_running_loop().create_future()
        self._step = asyncio.create_task(self._write_step(record, adapter, self._row))

    def end_step(self, row: Row) -> None:
        """The step's whole row is known."""
        assert self._row is not None
        self._row.set_result(row)

    async def step_written(self) -> None:
        """Wait for what `begin_step` began; a step whose `end_step` never came has the row of its record.

        Raises what could not be written; it is not raised again.
        """
        task, row = self._step, self._row
        self._step = self._row = None
        if task is not None:
            assert row is not None
            if not row.done():
                row.set_result({})
            await task

    async def _write_step(
        self, record: StepRecord, adapter: asyncio.Future[AdapterHandle], row: Awaitable[Row]
    ) -> None:
        failures: list[Exception] = []
        payload = None
        try:
            payload = await unless_set(self._stop, _fetched(adapter), grace_s=self._config.stop_grace_s)
            if payload is not None:
                record = replace(record, adapter=await asyncio.to_thread(weights_digest, payload))
        except Exception as error:  # the step is written all the same
            failures.append(error)
        await self._tried(failures, self._folder.write_record, record)
        await self._tried(failures, self._folder.write_table, record)
        if payload is not None:
            await self._tried(failures, self._folder.write_adapter, payload.files, payload.tied)
        await self._tried(failures, self._folder.append_metrics, dict(await row) or record.row)
        await self._tried(failures, self._folder.note_step, record.step, record.adapter)
        if failures:
            raise failures[0]

    async def _tried(self, failures: list[Exception], write: Callable[..., object], *arguments: Any) -> None:
        """One file that cannot be written does not keep the others from it; for room on the disk it waits."""
        try:
            await self._given_room(lambda: asyncio.to_thread(write, *arguments), waits=not failures)
        except Exception as error:
            failures.append(error)

    async def _given_room(self, write: Callable[[], Awaitable[object]], *, waits: bool) -> None:
        retry_io_s = self._config.retry_io_s if waits else 0.0
        await when_there_is_room(write, retry_io_s=retry_io_s, note=self._reporter.note, stop=self._stop)

    async def write_adapter(self, adapter: AdapterHandle) -> None:
        """Replace the run's adapter."""
        payload = await adapter.fetch()
        await asyncio.to_thread(self._folder.write_adapter, payload.files, payload.tied)

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after this step."""
        config = self._config
        by_time = config.save_minutes and time.monotonic() - self._saved_at >= 60 * config.save_minutes
        return bool(by_time or (config.save_every and step % config.save_every == 0))

    def begin_checkpoint(self, files: Mapping[str, bytes]) -> None:
        """Have the learner write a checkpoint of now, with these files; `checkpoint_written` has to be waited for
        before its next update."""
        assert self._checkpoint is None, "the checkpoint before is still being written"
        self._saved_at = time.monotonic()
        self._checkpoint = asyncio.create_task(self._checkpoint_after(self._step, files))

    async def _checkpoint_after(self, step: asyncio.Task[None] | None, files: Mapping[str, bytes]) -> None:
        """A run that is killed in between goes on from the checkpoint: its step would be missing from the books."""
        if step is not None:
            await asyncio.wait({step})
        await self.write_checkpoint(files)

    async def checkpoint_written(self) -> bool:
        """Wait for what `begin_checkpoint` began. One that cannot be written is said, and the run goes on: its records
        are there. Raises what else went wrong.

        Returns:
            False: The run is to stop, and the learner is busy with it still.
        """
        task, self._checkpoint = self._checkpoint, None
        if task is None:
            return not self._is_busy
        grace_s = self._config.stop_grace_s
        try:
            if not await unless_set(self._stop, _done(task), grace_s=grace_s):
                self._is_busy = True
                self._reporter.note("warning", f"a checkpoint was abandoned: it took over stop_grace_s={grace_s:g} s")
        except (LearnerError, NoRoomError) as error:
            self._reporter.note("warning", f"{error}; the run goes on, and has the records since the one before")
        return not self._is_busy

    async def write_checkpoint(self, files: Mapping[str, bytes], *, waits: bool = True) -> None:
        """The same, waited for.

        Args:
            waits: For room, where there is none.

        Raises:
            LearnerError: It cannot be written.
        """
        folder = str(self._folder.path / CHECKPOINTS_FOLDER)
        await self._given_room(lambda: self._learner.save_checkpoint(folder, files), waits=waits)
        await asyncio.to_thread(self._folder.mark)
        await asyncio.to_thread(self._prune)

    def _prune(self) -> None:
        """Remove the records that neither a start nor `keep_records` needs."""
        steps = checkpoint_steps(self._folder.path / CHECKPOINTS_FOLDER)
        if steps:
            prune_records(self._folder.path, keep_from=min(steps[0], steps[-1] - self._config.keep_records) + 1)

    async def close(self) -> None:
        """Wait for what is under way, whatever comes of it; for the end of a run that has failed."""
        for wait in (self.step_written, self.checkpoint_written):
            try:
                await wait()
            except Exception as error:
                self._reporter.note("warning", " ".join(str(error).split()))


async def _fetched(adapter: asyncio.Future[AdapterHandle]) -> AdapterPayload:
    return await (await kept_on(adapter)).fetch()


async def _done(work: Awaitable[None]) -> bool:
    await work
    return True


def weights_digest(payload: AdapterPayload) -> str:
    """SHA-256 of the adapter's tensors, hexadecimal; empty where it has none."""
    for name, content in payload.files:
        if name == ADAPTER_WEIGHTS:
            return hashlib.sha256(content).hexdigest()
    return ""
