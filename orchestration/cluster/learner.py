"""The loop's `Learner` port over learner ranks that are actors, and that may die or hang at any time.

All ranks then start again together: from the newest whole checkpoint, or from the seed where there is none yet. The
updates since are made again from their batches, which are kept for it, and then what was asked for is asked again. An
update carries its number, so that none is learned twice.
"""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from learner.checkpoint import find_checkpoint
from learner.errors import LearnerError, RankDiedError
from learner.types import ScoredGroup, UpdateMetrics, together
from orchestration.cluster.actors import LearnerActor
from orchestration.cluster.adapter import RayAdapter
from orchestration.cluster.calls import Pending, RemoteActor, shared
from orchestration.cluster.upkeep.heartbeat import BEAT_S, until_stalled
from orchestration.cluster.upkeep.restarts import Restarts
from orchestration.concurrency import before, gather_or_cancel
from orchestration.errors import RemoteTimeoutError, RlvrError, ValueLostError, WorkerDiedError, one_line
from orchestration.run.ledger.room import when_there_is_room
from orchestration.run.reporter import Note
from orchestration.settings.config import RunConfig
from rollout_server.types import AdapterPayload, AdapterProbe

Params = ParamSpec("Params")
Result = TypeVar("Result")
Ranks = Sequence[RemoteActor[LearnerActor]]

_LOST = (WorkerDiedError, RemoteTimeoutError, RankDiedError)
_SILENT_S = 15.0
"""How long a rank may take to say that it lives, when another has failed for no reason of its own."""


class RayLearner:
    """All learner ranks, called together.

    Args:
        start: Starts all ranks, for their so-manieth life, from 1, without a checkpoint.
        end: Ends their processes, whatever state they are in; never raises.
        restarts: The budget.
        note: Told what happens.
    """

    def __init__(
        self,
        start: Callable[[int], Awaitable[Ranks]],
        end: Callable[[], Awaitable[None]],
        config: RunConfig,
        *,
        restarts: Restarts,
        note: Note = lambda level, message: None,
        beat_s: float = BEAT_S,
    ) -> None:
        self._start, self._end, self._config = start, end, config
        self._restarts, self._note, self._beat_s = restarts, note, beat_s
        self._ranks: Ranks = ()
        self._life = 1
        self._step = 0
        self._checkpoints: Path | None = None
        self._since: dict[int, bytes] = {}
        """Pickled batches by the step they made, those in no checkpoint; as `shared` gives them."""
        self._no_restart: RlvrError | None = None
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Start all ranks; returns when they have met and hold the model. A start that fails is not tried again."""
        self._ranks = await self._start(self._life)

    def fail(self, error: RlvrError) -> None:
        """Give up: what is under way, and every later call, raises `error`."""
        if not self._failure.done():
            self._failure.set_exception(error)
            self._failure.exception()  # seen, should nobody ask

    def start_no_more(self, error: RlvrError) -> None:
        """What is there may end its work; but when it is lost, `error` is raised."""
        self._no_restart = error

    async def notes(self) -> tuple[str, ...]:
        """What a user should know of the started model; the ranks say the same."""
        return await self._ranks[0].call(LearnerActor.notes, timeout_s=self._config.learner.start_timeout_s)()

    async def update(self, groups_P: Sequence[ScoredGroup]) -> UpdateMetrics:
        step = self._step + 1
        content = pickle.dumps(tuple(groups_P), pickle.HIGHEST_PROTOCOL)
        batch = await self._given_room(lambda: shared(content))
        metrics = await self._kept_alive(lambda: self._update(batch, step))
        self._step, self._since[step] = step, batch
        return metrics

    async def export_adapter(self) -> RayAdapter:
        """All ranks take part (ZeRO-3 gathers); the bytes stay in the object store of rank 0's node. The adapter is
        probed later, while it travels."""
        timeout_s = self._config.rollout.publish_timeout_s

        async def exported() -> Pending[int, AdapterPayload]:
            exports = [rank.begin(LearnerActor.export_adapter)() for rank in self._ranks]
            await gather_or_cancel(export.settled(timeout_s=timeout_s) for export in exports)
            return exports[0]

        async def again() -> Pending[int, AdapterPayload]:
            pending = await self._given_room(lambda: self._kept_alive(exported))
            if (found := await pending.settled(timeout_s=timeout_s)) != version:
                raise ValueLostError(f"adapter version {version} is gone, and the learner is at {found} by now")
            return pending

        async def probed() -> AdapterProbe:
            probes = await self._kept_alive(lambda: self._all(LearnerActor.probe_adapter, timeout_s))
            return probes[0]

        version = self._step
        return RayAdapter(await self._given_room(lambda: self._kept_alive(exported)), probed, again, timeout_s)

    async def save_checkpoint(self, folder: str, files: Mapping[str, bytes]) -> None:
        self._checkpoints, step = Path(folder), self._step
        timeout_s = self._config.learner.update_timeout_s

        await self._kept_alive(
            lambda: self._watched(
                f"checkpoint of step {step}", self._all(LearnerActor.save_checkpoint, timeout_s, folder, files)
            )
        )
        self._since = {made: batch for made, batch in self._since.items() if made > step}

    async def load_checkpoint(self, folder: str) -> int:
        self._checkpoints = Path(folder).parent
        self._step = await self._kept_alive(lambda: self._load(folder))
        self._since.clear()
        return self._step

    async def _given_room(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """What `work` gives, which puts something into the object store of a node, where there may be no room yet."""
        return await when_there_is_room(work, retry_io_s=self._config.retry_io_s, note=self._note)

    async def _kept_alive(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """What `work` gives, which calls the ranks; as often as ranks die or hang meanwhile, and are there again."""
        while True:
            if self._failure.done():
                self._failure.result()  # raises
            try:
                return await self._unless_failed(work())
            except Exception as error:
                why = await self._lost(error)
                if why is None:
                    raise
            await self._unless_failed(self._start_again(why))

    async def _unless_failed(self, work: Awaitable[Result]) -> Result:
        answer = await before(self._failure, work)
        if answer is None:
            self._failure.result()  # raises
            raise AssertionError
        return answer[0]

    async def _lost(self, error: Exception) -> str | None:
        """What was lost with an error, if it means that. Where one rank dies, another may be the first to fail: with
        what its library says of a connection that is gone."""
        if isinstance(error, _LOST):
            return str(error)
        if isinstance(error, (LearnerError, RlvrError, ValueError)) or len(self._ranks) == 1:
            return None
        try:
            await self._all(LearnerActor.notes, _SILENT_S)
        except _LOST as loss:
            return str(loss)
        return None

    async def _start_again(self, why: str) -> None:
        began = time.monotonic()
        while True:
            if self._no_restart is not None:
                raise self._no_restart
            try:
                self._restarts.book(why)
            except WorkerDiedError as error:
                self.fail(error)  # who still asks is told the same, and nothing is begun again for it
                raise
            self._note("warning", f"{one_line(why, 1000)}; all learner ranks start again, and rollouts go on meanwhile")
            await self._end()
            self._life += 1
            try:
                self._ranks = await self._start(self._life)
                reached = await self._go_back()
            except _LOST as error:
                why = str(error)
            else:
                break
        self._note(
            "info",
            f"the learner is back at step {self._step} after {time.monotonic() - began:.0f} s"
            + (f", with {self._step - reached} step(s) made again" if reached < self._step else ""),
        )

    async def _go_back(self) -> int:
        """From the newest checkpoint to where the ranks were. Returns the checkpoint's step, 0 without one."""
        step = 0
        if self._checkpoints is not None:
            found = await asyncio.to_thread(find_checkpoint, self._checkpoints)
            if found.newest is not None:
                step = await self._load(str(found.newest))
        for number in range(step + 1, self._step + 1):
            if number not in self._since:
                raise LearnerError(
                    f"the learner cannot go back to step {self._step}: {self._checkpoints} holds no whole checkpoint "
                    f"after step {step}, and the batch of step {number} is kept no longer"
                )
            await self._update(self._since[number], number)
        return step

    async def _load(self, folder: str) -> int:
        steps = await self._all(LearnerActor.load_checkpoint, self._config.learner.start_timeout_s, folder)
        return steps[0]

    async def _update(self, batch: bytes, step: int) -> UpdateMetrics:
        timeout_s, staleness = self._config.learner.update_timeout_s, self._config.max_staleness
        work = self._all(LearnerActor.update, timeout_s, batch, staleness, step)
        return together(await self._watched(f"update {step}", work))

    async def _watched(self, what: str, work: Awaitable[Result]) -> Result:
        """The result of `work`; ends in a RemoteTimeoutError when the ranks make no progress."""
        watch = asyncio.ensure_future(
            until_stalled(
                self._heartbeat,
                lambda: True,
                stall_timeout_s=self._config.learner.stall_timeout_s,
                beat_s=self._beat_s,
            )
        )
        try:
            answer = await before(watch, work)
            if answer is None:
                raise RemoteTimeoutError(f"the learner's {what} {watch.result()}")
            return answer[0]
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def _heartbeat(self) -> int:
        return sum(await self._all(LearnerActor.heartbeat, self._config.learner.update_timeout_s))

    async def _all(
        self,
        method: Callable[Concatenate[LearnerActor, Params], Awaitable[Result]],
        timeout_s: float,
        *args: Params.args,
        **kwargs: Params.kwargs,
    ) -> list[Result]:
        """The same call on all ranks. The first failure is raised at once: the others may wait in a collective."""
        calls: list[Any] = [rank.call(method, timeout_s=timeout_s)(*args, **kwargs) for rank in self._ranks]
        return await gather_or_cancel(calls)
