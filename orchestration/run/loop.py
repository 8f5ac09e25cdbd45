"""The main job: sample, score, learn, publish; again and again, until done, stopped or broken.

The loop consumes batches from the flow, waits for the learner and for every worker's publish report, and is unblocked
by them or by `stop`. While the learner works, generation goes on as far as `max_staleness` allows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from learner.types import UpdateMetrics
from orchestration.concurrency import unless_set
from orchestration.errors import RewardsUnavailableError, RlvrError
from orchestration.run.evaluation import Evaluation, evaluate
from orchestration.run.flow import Batch, FlowSettings, RolloutFlow, Source
from orchestration.run.folder import RunFolder
from orchestration.run.metrics import PhaseClock, step_row
from orchestration.run.ports import AdapterHandle, Generator, Learner, Scorer
from orchestration.run.reporter import Reporter
from orchestration.run.resume import CHECKPOINTS_FOLDER, RunState, find_resumable
from orchestration.run.start import StartClock
from orchestration.run.summary import Scores, Spent, Summary, Tally, add_seconds, grown, summarise
from orchestration.settings.config import RunConfig
from orchestration.types import BuiltPrompt
from rollout_server.types import PublishReport, SamplingParams

WEIGHT_ALARM = 0.5, 2.0
"""Bounds of the mean importance weight of a step; beyond them it is said aloud. It is 1 where both sides agree."""


class ResumableSource(Source, Protocol):
    """A source that can say where it is and go back there."""

    @property
    def position(self) -> int: ...

    def restore(self, position: int, pending: Sequence[str]) -> None: ...


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
    start: StartClock = field(default_factory=lambda: StartClock(time.time()))
    """Runs until the first step is done."""


class TrainingLoop:
    """One run from start to end. `run()` may be called once."""

    def __init__(
        self, config: RunConfig, rooms: Rooms, folder: RunFolder, reporter: Reporter, stop: asyncio.Event
    ) -> None:
        self._config, self._rooms, self._folder = config, rooms, folder
        self._reporter, self._stop = reporter, stop
        self._clock = PhaseClock()
        self._tally = Tally()
        self._before: Scores | None = None
        self._adapter: AdapterHandle | None = None
        self._bookkeeping: asyncio.Task[None] | None = None
        self._first_step = 0
        self._seconds_before: dict[str, float] = {}

    async def run(self) -> Summary:
        """Train, and return the summary, which lies in the run folder too.

        Raises what broke the run, after the adapter, a checkpoint and the problems under way have been written, as
        far as the rooms still answer.
        """
        await self._resume()
        if self._config.eval_at_ends and self._before is None:
            with self._rooms.start.phase("evaluation"):
                before = await unless_set(self._stop, self._evaluate("before"))
            self._before = None if before is None else before.scores
        flow = self._new_flow()
        try:
            await self._steps(flow)
            after = await self._evaluate_at_end()
        except Exception as error:
            await flow.close()
            await self._save_after_failure(flow, error)
            raise
        await flow.close()
        await self._save(flow, final=True)
        summary = self._summary(after)
        self._folder.write_summary(summary)
        self._reporter.finish(summary)
        return summary

    async def _resume(self) -> None:
        found = await asyncio.to_thread(find_resumable, self._folder.path)
        if found is None:
            return
        for damage in found.damaged:
            self._reporter.note("warning", f"{damage}; an older checkpoint is used")
        state = found.state
        self._rooms.source.restore(state.cursor, state.pending)
        # The learner's own count: an update that was answered too late for the loop is still in its checkpoint.
        step = self._first_step = await self._rooms.learner.load_checkpoint(str(found.checkpoint))
        self._before = state.before
        self._tally = Tally.restored(step, state.tokens)
        self._seconds_before = dict(state.seconds)
        self._reporter.note("info", f"going on after step {step} in {self._folder.path}")
        if step:
            self._adapter = await self._rooms.learner.export_adapter()
            await self._rooms.generator.publish(self._adapter)

    def _new_flow(self) -> RolloutFlow:
        config = self._config
        settings = FlowSettings(
            prompts_per_step=config.prompts_per_step,
            max_staleness=config.max_staleness,
            drop_flat_groups=config.drop_flat_groups,
            max_refills=config.max_refills,
            max_batches=config.max_steps - self._first_step,
            sampling=self._rooms.sampling,
        )
        return RolloutFlow(
            generator=self._rooms.generator,
            scorer=self._rooms.scorer,
            source=self._rooms.source,
            settings=settings,
            clock=self._clock,
            first_version=self._first_step,
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
            update, reports = await self._learn_and_publish(flow, batch)
            await self._after_step(flow, batch, update, reports, spent)

    async def _learn_and_publish(
        self, flow: RolloutFlow, batch: Batch
    ) -> tuple[UpdateMetrics, Sequence[PublishReport]]:
        rooms = self._rooms
        self._reporter.phase("learning", f"step {self._tally.step + 1}", None)
        with self._clock.phase("learning"):
            update = await rooms.learner.update(batch.scored_P)
        self._tally.step = update.step
        flow.learned()
        self._reporter.phase("publishing", f"version {self._tally.step}", None)
        with self._clock.phase("publishing"):
            began = time.perf_counter()
            self._adapter = await rooms.learner.export_adapter()
            reports = await rooms.generator.publish(self._adapter)
            self._tally.publish_ms.append(1e3 * (time.perf_counter() - began))
        flow.published(update.step)
        return update, reports

    async def _after_step(
        self,
        flow: RolloutFlow,
        batch: Batch,
        update: UpdateMetrics,
        reports: Sequence[PublishReport],
        spent: Spent,
    ) -> None:
        """Metrics, files, alarms, evaluation. Files are written while the next batch is generated."""
        tally, step = self._tally, self._tally.step
        tally.add(batch, update)
        row = step_row(
            groups=batch.scored_P,
            update=update,
            reward_names=self._rooms.scorer.reward_names,
            strict_reward=strict.name if (strict := self._config.judges.get("strict")) else None,
            phase_seconds=grown(self._clock.seconds(), spent.seconds),
            busy_seconds=grown(self._clock.busy_seconds(), spent.busy),
            generated_tokens=batch.num_generated_tokens,
            dropped_flat_groups=batch.num_dropped_flat,
            publish_ms=tally.publish_ms[-1],
            probe_difference=max((r.probe_difference for r in reports if r.probe_difference is not None), default=None),
            step_seconds=time.perf_counter() - spent.at,
        )
        self._reporter.step(row)
        if not self._rooms.start.finished:
            self._rooms.start.finish(time.perf_counter() - spent.at)
            self._reporter.note("info", self._rooms.start.line())
        self._say_if_flat(batch)
        self._say_if_off_policy(update)
        for warning in update.warnings:
            self._reporter.note("warning", warning)
        if self._config.example_every and (step - 1) % self._config.example_every == 0:
            self._show_example(batch)
        await self._finish_bookkeeping()
        self._bookkeeping = asyncio.create_task(self._write_step(step, batch, update, row))
        if self._config.save_every and step % self._config.save_every == 0:
            await self._save(flow, final=False)
        if self._config.eval_every and step % self._config.eval_every == 0 and step < self._config.max_steps:
            await unless_set(self._stop, self._evaluate(f"step {step}"))

    async def _write_step(self, step: int, batch: Batch, update: UpdateMetrics, row: dict[str, Any]) -> None:
        adapter = self._adapter
        assert adapter is not None
        payload = await adapter.fetch()

        def write() -> None:
            self._folder.append_metrics(row)
            self._folder.write_completions(
                step,
                batch.scored_P,
                {group.built.prompt.prompt_id: group.built.text for group in batch.groups_P},
                self._rooms.scorer.reward_names,
                update.advantages,
            )
            self._folder.write_adapter(payload.files, payload.tied)

        await asyncio.to_thread(write)

    async def _finish_bookkeeping(self) -> None:
        if self._bookkeeping is not None:
            await self._bookkeeping
            self._bookkeeping = None

    def _refuse_unscored(self, batch: Batch) -> None:
        if all(member.total is None for group in batch.scored_P for member in group.members):
            raise RewardsUnavailableError(
                f"the reward service could not score any of the {len(batch.groups_P)} groups of step "
                f"{self._tally.step + 1}; the audit of one request shows the reasons (POST /v1/score)"
            )

    def _say_if_flat(self, batch: Batch) -> None:
        self._tally.flat_steps = self._tally.flat_steps + 1 if all(g.flat for g in batch.scored_P) else 0
        if self._tally.flat_steps and self._tally.flat_steps % self._config.flat_steps_alarm == 0:
            self._reporter.note(
                "warning",
                f"for {self._tally.flat_steps} steps all completions of each group earned the same: nothing is "
                f"learned. Try easier or more varied problems, a higher rollout.temperature, more "
                f"rollout.num_generations, or drop_flat_groups=true",
            )

    def _say_if_off_policy(self, update: UpdateMetrics) -> None:
        """At the first such step, and then ever more seldom: after 2, 4, 8 … in a row."""
        low, high = WEIGHT_ALARM
        weight = update.values.get("importance_sampling_weight_mean")
        off = weight is not None and update.values.get("num_loss_tokens", 1) > 0 and not low <= weight <= high
        steps = self._tally.off_policy_steps = self._tally.off_policy_steps + 1 if off else 0
        if steps and steps & (steps - 1) == 0:
            self._reporter.note(
                "warning",
                f"step {update.step}: the sampler correction multiplies the loss by {weight:.3g} on average, and for "
                f"{steps} step(s) now by less than {low:g} or more than {high:g}: the sampler's log-probs are not the "
                f"learner's (sampling_logprob_difference_mean in metrics.jsonl). Try one precision for rollout.dtype "
                f"and learner.dtype, a smaller max_staleness or learner.learning_rate, or "
                f"learner.loss.vllm_importance_sampling_mode=token_truncate",
            )

    def _show_example(self, batch: Batch) -> None:
        group = batch.groups_P[0]
        best = max(group.scored.members, key=lambda member: float("-inf") if member.total is None else member.total)
        rewards = dict(zip(self._rooms.scorer.reward_names, best.rewards, strict=True))
        self._reporter.example(group.built.text, best.completion.text, rewards)

    async def _evaluate(self, when: str) -> Evaluation:
        self._reporter.phase("evaluation", when, len(self._rooms.held_out))
        with self._clock.phase("evaluation"):
            result = await evaluate(
                generator=self._rooms.generator,
                judges=self._rooms.judges,
                problems=self._rooms.held_out,
                sampling=self._rooms.sampling,
                on_progress=self._reporter.progress,
            )
        self._reporter.evaluation(when, result.accuracies(), len(result.completions_N))
        return result

    async def _evaluate_at_end(self) -> Evaluation | None:
        if not self._config.eval_at_ends or self._stop.is_set():
            return None
        return await unless_set(self._stop, self._evaluate("after"))

    async def _save(self, flow: RolloutFlow, *, final: bool) -> None:
        """Checkpoint and state; a finished run needs neither to go on, but its optimizer may be wanted."""
        await self._finish_bookkeeping()
        if self._adapter is None:  # no step was made: the untrained adapter is still a usable one
            self._adapter = await self._rooms.learner.export_adapter()
            payload = await self._adapter.fetch()
            await asyncio.to_thread(self._folder.write_adapter, payload.files, payload.tied)
        if final and not self._stop.is_set() and not self._config.save_every:
            return
        state = RunState(
            step=self._tally.step,
            cursor=self._rooms.source.position,
            pending=tuple(built.problem.problem_id for built in flow.pending()),
            before=self._before,
            tokens=self._tally.tokens(),
            seconds=self._all_seconds(),
        )
        await self._rooms.learner.save_checkpoint(str(self._folder.path / CHECKPOINTS_FOLDER), state.to_file())

    async def _save_after_failure(self, flow: RolloutFlow, failure: BaseException) -> None:
        """Keep what can be kept; a second failure is said, and does not hide the first."""
        try:
            await self._save(flow, final=False)
            self._reporter.note("info", f"kept in {self._folder.path}: start again with run_dir set to it to go on")
        except Exception as error:
            self._reporter.note("warning", f"the run's state could not be saved: {' '.join(str(error).split())}")
        try:
            self._folder.write_summary(self._summary(None, status="failed", reason=str(failure)))
        except RlvrError as error:
            self._reporter.note("warning", str(error))

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
        )

    def _all_seconds(self) -> dict[str, float]:
        return add_seconds(self._seconds_before, self._clock.seconds())
