"""The main job: sample, score, learn, publish; again and again, until done, stopped or broken.

The loop consumes batches from the flow, waits for the learner and for every worker's publish report, and is unblocked
by them or by `stop`. While the learner works, generation goes on as far as `max_staleness` allows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from learner.types import ScoredGroup, UpdateMetrics
from orchestration.concurrency import kept_on, unless_set
from orchestration.errors import NoRoomError, RewardsUnavailableError, RlvrError
from orchestration.run.alarms import Alarms
from orchestration.run.evaluation import Evaluation, evaluate
from orchestration.run.flow import Batch, FlowSettings, RolloutFlow
from orchestration.run.ledger.folder import RunFolder
from orchestration.run.ledger.ledger import Ledger
from orchestration.run.ledger.records import RunState, StepRecord, encodable, given_to_rewards, storable
from orchestration.run.ledger.recovery import catch_up, records_of
from orchestration.run.ledger.resume import state_files
from orchestration.run.metrics import Number, PhaseClock, pass_rate, step_row
from orchestration.run.ports import AdapterHandle, Generator, Learner, ResumableSource, Scorer
from orchestration.run.reporter import Reporter
from orchestration.run.start import StartClock
from orchestration.run.summary import Spent, Summary, Tally, add_seconds, grown, summarise
from orchestration.settings.config import RunConfig
from orchestration.types import BuiltPrompt
from rollout_server.types import PublishReport, SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class Rooms:
    """What the loop works with, already started."""

    generator: Generator
    learner: Learner
    scorer: Scorer
    judges: Mapping[str, Scorer]
    """Score held-out answers, by name (`strict`, `lenient`), whatever the run learns from."""
    source: ResumableSource
    held_out: Sequence[BuiltPrompt]
    sampling: SamplingParams
    """Of training; held-out answers are greedy."""
    weights: str = ""
    """Of the base model: their fingerprint, which a run keeps to its end."""
    start: StartClock = field(default_factory=lambda: StartClock(time.perf_counter()))
    """Runs until the first step is done."""


class TrainingLoop:
    """One run from start to end. `run()` may be called once; `give_away` hears of its end before that is recorded."""

    def __init__(
        self,
        config: RunConfig,
        rooms: Rooms,
        folder: RunFolder,
        reporter: Reporter,
        stop: asyncio.Event,
        give_away: Callable[[Summary], None] = lambda summary: None,
    ) -> None:
        self._config, self._rooms, self._folder = config, rooms, folder
        self._reporter, self._stop, self._give_away = reporter, stop, give_away
        self._clock, self._tally = PhaseClock(), Tally()
        self._strict = {part: config.judges_of(part)[next(iter(config.judges))].name for part in config.parts()}
        self._best_total = sum(spec.weight for spec in config.rewards if spec.weight > 0)
        self._ledger = Ledger(config, folder, rooms.learner, reporter, stop)
        self._before: dict[str, tuple[float | None, ...]] | None = None
        self._adapter: AdapterHandle | None = None
        self._learning: Batch | None = None
        self._first_step, self._finished = 0, tuple[ScoredGroup, ...]()
        self._seconds_before: dict[str, float] = {}

    async def run(self) -> Summary:
        """Train, and return the summary, which lies in the run folder too.

        Raises what broke the run, after the adapter, a checkpoint and the problems under way have been written, as
        far as the rooms still answer.
        """
        if not await unless_set(self._stop, self._resumed(), grace_s=self._config.stop_grace_s):
            return self._ended(None)
        self._alarms = Alarms(self._config, self._reporter, self._rooms.scorer.reward_names, self._folder.append_event)
        if self._config.eval_at_ends and self._before is None:
            with self._rooms.start.phase("evaluation"):
                before = await unless_set(self._stop, self._evaluate("before"))
            self._before = None if before is None else dict(before.scores)
        flow = self._new_flow()
        try:
            await self._steps(flow)
            after = await self._evaluate_at_end()
            await flow.close()
            await self._save(flow)
        except Exception as error:
            await flow.close()
            await self._save_after_failure(flow, error)
            raise
        return self._ended(after)

    def _ended(self, after: Evaluation | None) -> Summary:
        summary = self._summary(after)
        self._give_away(summary)  # a run that is killed meanwhile has not ended, and its next start does this again
        self._folder.write_summary(summary)
        self._reporter.finish(summary)
        return summary

    async def _resumed(self) -> bool:
        """Bring everything to where the run stood. Until that is done, nothing is written of where it stands."""
        found = self._folder.resumable
        if found is None:
            return True
        for damage in found.damaged:
            self._reporter.note("warning", damage)
        if found.changed:
            self._reporter.note("info", f"changed since the last start: {found.changed}")
        state = found.state
        self._tally = Tally.restored(found.recorded, state.tokens)
        self._before, self._seconds_before = state.before, dict(state.seconds)
        self._rooms.source.restore(state.cursor, state.pending, state.curriculum)
        self._finished = found.finished if self._config.max_staleness else ()
        exact = await catch_up(
            self._rooms.learner,
            self._folder.path,
            checkpoint=found.checkpoint,
            learned=found.learned,
            recorded=found.recorded,
            on_step=lambda step: self._reporter.phase("learning", f"step {step} again, from its record"),
        )
        if not exact:
            self._reporter.note(
                "warning",
                f"steps {found.learned + 1} to {found.recorded} were learned again from their records, and the adapter "
                f"is not the one of then, bit for bit: ranks, threads, settings or the machine are others",
            )
        step = self._first_step = found.recorded
        first = max(found.learned, 1)
        await asyncio.to_thread(self._folder.mend, records_of(self._folder.path, first, found.recorded))
        self._reporter.note("info", f"going on after step {step} in {self._folder.path}")
        if step:
            self._adapter = await self._rooms.learner.export_adapter()
            await self._ledger.write_adapter(self._adapter)
            await self._rooms.generator.publish(self._adapter)
        return True

    def _new_flow(self) -> RolloutFlow:
        config = self._config
        settings = FlowSettings(
            prompts_per_step=config.prompts_per_step,
            max_staleness=config.max_staleness,
            drop_flat_groups=config.drop_flat_groups,
            max_refills=config.max_refills,
            max_batches=config.max_steps - self._first_step,
            sampling=self._rooms.sampling,
            seed=config.seed,
        )
        return RolloutFlow(
            generator=self._rooms.generator,
            scorer=self._rooms.scorer,
            source=self._rooms.source,
            settings=settings,
            clock=self._clock,
            first_version=self._first_step,
            finished=self._finished,
            on_progress=self._reporter.progress,
        )

    async def _steps(self, flow: RolloutFlow) -> None:
        while self._tally.step < self._config.max_steps and not self._stop.is_set():
            spent = Spent.now(self._clock)
            self._reporter.phase("generation", f"step {self._tally.step + 1}", self._config.prompts_per_step)
            batch = await unless_set(self._stop, flow.next_batch())
            if batch is None:
                return
            self._refuse_unscored(batch)
            learned = await self._learn_and_publish(flow, batch, spent)
            if learned is None:
                return
            await self._after_step(flow, batch, *learned, spent)

    async def _learn_and_publish(
        self, flow: RolloutFlow, batch: Batch, spent: Spent
    ) -> tuple[UpdateMetrics, Sequence[PublishReport]] | None:
        """None: the run was stopped, and this was not begun, or took too long."""
        rooms = self._rooms
        is_free = await self._ledger.checkpoint_written()
        await self._ledger.step_written()
        if not is_free or self._stop.is_set():  # both may have waited for room
            return None
        self._learning = batch
        self._reporter.phase("learning", f"step {self._tally.step + 1}", None)
        with self._clock.phase("learning"):
            work, grace_s = rooms.learner.update(batch.scored_P), self._config.stop_grace_s
            update = await unless_set(self._stop, work, grace_s=grace_s)
        if update is None:
            return None
        self._tally.add(batch, update)
        self._learning = None
        flow.learned()
        self._observe(batch)
        self._reporter.phase("publishing", f"version {update.step}", None)
        with self._clock.phase("publishing"):
            began = time.perf_counter()
            export = asyncio.ensure_future(rooms.learner.export_adapter())
            # From here on the step is recorded, whatever becomes of its publishing.
            self._ledger.begin_step(self._record(flow, batch, update, self._row(batch, update, spent)), export)
            reports = await unless_set(self._stop, self._publish(export), grace_s=self._config.stop_grace_s)
            if reports is None:
                return None
            self._tally.publish_ms.append(1e3 * (time.perf_counter() - began))
        if self._config.max_staleness or not self._evaluates_after(update.step):
            flow.published(update.step)
        return update, reports

    async def _publish(self, export: asyncio.Future[AdapterHandle]) -> Sequence[PublishReport]:
        self._adapter = await kept_on(export)  # the step's record waits for it too
        return await self._rooms.generator.publish(self._adapter)

    def _evaluates_after(self, step: int) -> bool:
        every = self._config.eval_every
        return bool(every) and step % every == 0 and step < self._config.max_steps

    def _row(
        self, batch: Batch, update: UpdateMetrics, spent: Spent, reports: Sequence[PublishReport] | None = None
    ) -> dict[str, Number]:
        """The step's metrics; before its publish (None) without that."""
        differences = [r.probe_difference for r in reports or () if r.probe_difference is not None]
        return step_row(
            groups=batch.scored_P,
            update=update,
            reward_names=self._rooms.scorer.reward_names,
            strict_rewards=self._strict if "strict" in self._config.judges else {},
            verifier=self._config.reward.verifier,
            dropped_problems=self._rooms.source.num_dropped,
            phase_seconds=grown(self._clock.seconds(), spent.seconds),
            busy_seconds=grown(self._clock.busy_seconds(), spent.busy),
            generated_tokens=batch.num_generated_tokens,
            dropped_flat_groups=batch.num_dropped_flat,
            publish_ms=None if reports is None else self._tally.publish_ms[-1],
            publish_bytes=reports[0].version.num_bytes if reports else None,
            probe_difference=max(differences, default=None),
            step_seconds=time.perf_counter() - spent.at,
        )

    def _record(self, flow: RolloutFlow, batch: Batch, update: UpdateMetrics, row: dict[str, Number]) -> StepRecord:
        return StepRecord(
            groups_P=storable(batch.scored_P),
            references={
                group.built.prompt.prompt_id: given_to_rewards(group.built.problem) for group in batch.groups_P
            },
            prompt_texts={group.built.prompt.prompt_id: encodable(group.built.text) for group in batch.groups_P},
            seeds=tuple(group.seed for group in batch.groups_P),
            reward_names=tuple(self._rooms.scorer.reward_names),
            update=update,
            row=row,
            adapter="",
            state=self._state(flow, update.step),
        )

    def _state(self, flow: RolloutFlow, step: int) -> RunState:
        """Where the loop stands, with so many updates made. What was put first and is not drawn yet is pending too."""
        source = self._rooms.source
        return RunState(
            step=step,
            cursor=source.position,
            pending=(*(built.problem.problem_id for built in flow.pending()), *source.waiting),
            before=self._before,
            tokens=self._tally.tokens(),
            seconds=self._all_seconds(),
            problems=source.digest(),
            weights=self._rooms.weights,
            curriculum=source.curriculum,
        )

    def _observe(self, batch: Batch) -> None:
        """Tell the source how often each problem was answered right; before the record, which holds what follows."""
        names = self._rooms.scorer.reward_names
        for group in (*batch.scored_P, *batch.dropped_flat):
            strict = self._strict[group.category if group.category in self._strict else ""]
            rate = pass_rate(group, names.index(strict) if strict in names else None, self._best_total)
            if rate is not None:
                self._rooms.source.observe(group.prompt_id, rate)

    async def _after_step(
        self,
        flow: RolloutFlow,
        batch: Batch,
        update: UpdateMetrics,
        reports: Sequence[PublishReport],
        spent: Spent,
    ) -> None:
        """Metrics, checkpoint, alarms, evaluation. Files are written while the next batch is generated."""
        row = self._row(batch, update, spent, reports)
        row["alarms"] = self._alarms.look(batch, update, row)
        self._ledger.end_step(row)
        self._reporter.step(row)
        if not self._rooms.start.finished:
            self._rooms.start.finish(time.perf_counter() - spent.at)
            self._reporter.note("info", self._rooms.start.line())
        step = update.step
        if self._ledger.is_due(step) and step < self._config.max_steps:
            self._ledger.begin_checkpoint(state_files(self._state(flow, step), flow.finished()))
        if self._evaluates_after(step):
            await unless_set(self._stop, self._evaluate(f"step {step}"))
            # Without staleness the next batch begins only now: beside an evaluation its sequences would be decoded in
            # batches of other sizes, which change their last bits, and a run that goes on would not meet the same.
            if not self._config.max_staleness:
                flow.published(step)
        self._alarms.refuse()

    def _refuse_unscored(self, batch: Batch) -> None:
        if all(member.total is None for group in batch.scored_P for member in group.members):
            raise RewardsUnavailableError(
                f"the reward service could not score any of the {len(batch.groups_P)} groups of step "
                f"{self._tally.step + 1}; the audit of one request shows the reasons (POST /v1/score)"
            )

    async def _evaluate(self, when: str) -> Evaluation:
        self._reporter.phase("evaluation", when, len(self._rooms.held_out))
        with self._clock.phase("evaluation"):
            result = await evaluate(
                generator=self._rooms.generator,
                judges=self._rooms.judges,
                problems=self._rooms.held_out,
                sampling=self._rooms.sampling,
                together=self._config.max_staleness == 0,
                on_progress=self._reporter.progress,
            )
        self._reporter.evaluation(when, result.accuracies(), len(result.completions_N))
        self._alarms.evaluated(result, self._tally.step)
        return result

    async def _evaluate_at_end(self) -> Evaluation | None:
        if not self._config.eval_at_ends or self._stop.is_set():
            return None
        return await unless_set(self._stop, self._evaluate("after"))

    async def _save(self, flow: RolloutFlow) -> None:
        """All that is still to be written, at the end of a run: the last step, the adapter, a checkpoint."""
        is_free = await self._ledger.checkpoint_written()
        await self._ledger.step_written()
        if not is_free:
            return
        if self._learning is not None:  # the learner is busy, and the records say all there is
            grace = f"stop_grace_s={self._config.stop_grace_s:g}"
            self._reporter.note("warning", f"step {self._tally.step + 1} was abandoned: its update took over {grace} s")
            return
        if self._adapter is None:  # no step was made: the untrained adapter is still a usable one
            self._adapter = await self._rooms.learner.export_adapter()
            await self._ledger.write_adapter(self._adapter)
        self._ledger.begin_checkpoint(state_files(self._state(flow, self._tally.step), flow.finished()))
        await self._ledger.checkpoint_written()

    async def _save_after_failure(self, flow: RolloutFlow, failure: BaseException) -> None:
        """Keep what can be kept, each thing by itself; a second failure is said, and does not hide the first."""
        await self._ledger.close()
        try:
            if self._adapter is None:
                self._adapter = await self._rooms.learner.export_adapter()
                await self._ledger.write_adapter(self._adapter)
            await self._ledger.write_checkpoint(
                state_files(self._state(flow, self._tally.step), flow.finished(), self._unanswered(flow)),
                waits=not isinstance(failure, NoRoomError),
            )
            self._reporter.note("info", f"kept in {self._folder.path}: start again with run_dir set to it to go on")
        except Exception as error:
            why = "for the same reason" if str(error) == str(failure) else " ".join(str(error).split())
            self._reporter.note("warning", f"the run's state could not be saved: {why}; its records are kept")
        try:
            self._folder.write_summary(self._summary(None, status="failed", reason=str(failure)))
        except RlvrError as error:
            self._reporter.note("warning", str(error))

    def _unanswered(self, flow: RolloutFlow) -> StepRecord | None:
        """The step that the learner may have made although its answer never came, as it is then recorded."""
        batch = self._learning
        if batch is None:
            return None
        flow.learned()
        update = UpdateMetrics(step=self._tally.step + 1)
        return self._record(flow, batch, update, self._row(batch, update, Spent.now(self._clock)))

    def _summary(self, after: Evaluation | None, *, status: str | None = None, reason: str | None = None) -> Summary:
        return summarise(
            config=self._config,
            run_dir=str(self._folder.path),
            status=status or ("stopped" if self._stop.is_set() else "finished"),
            reason=reason,
            tally=self._tally,
            start_s=self._rooms.start.seconds(),
            seconds=self._all_seconds(),
            before=self._before,
            after=None if after is None else after.scores,
            categories=[built.problem.category for built in self._rooms.held_out],
        )

    def _all_seconds(self) -> dict[str, float]:
        return add_seconds(self._seconds_before, self._clock.seconds())
