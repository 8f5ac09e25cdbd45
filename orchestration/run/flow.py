"""From problems to scored batches: who is admitted, who is thrown away, and in what order batches leave.

The flow consumes problems (an endless source), waits for the generator and the scorer, and is unblocked by two things:
a group that finishes, and `published()`, which admits the next ones. It holds no model and no tensor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from learner.types import ScoredGroup
from orchestration.run.ports import Generator, Scorer
from orchestration.types import BuiltPrompt
from rollout_server.types import SamplingParams


class Source(Protocol):
    """Problems in the order of training."""

    def next(self) -> BuiltPrompt: ...


class Clock(Protocol):
    """Books wall time on phases."""

    def phase(self, name: str) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowSettings:
    """How batches are put together; see `RunConfig` for each field."""

    prompts_per_step: int
    max_staleness: int
    drop_flat_groups: bool
    max_refills: int
    sampling: SamplingParams
    max_batches: int
    """Batches that will be asked for; nothing is generated beyond them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedGroup:
    """A scored group with the problem it answers."""

    built: BuiltPrompt
    scored: ScoredGroup


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one optimizer step learns from."""

    groups_P: tuple[FinishedGroup, ...]
    num_dropped_flat: int
    """Flat groups thrown away and refilled since the last batch."""
    num_generated_tokens: int
    """Completion tokens sampled since the last batch, thrown-away groups included."""

    @property
    def scored_P(self) -> tuple[ScoredGroup, ...]:
        return tuple(group.scored for group in self.groups_P)


@dataclass(slots=True)
class _Admitted:
    built: BuiltPrompt
    start_version: int
    """Newest version when it was admitted; its completions are on this version or a newer one."""
    task: asyncio.Task[None] | None = None
    scored: ScoredGroup | None = None


class RolloutFlow:
    """Keeps the generator busy as far as the staleness bound allows, and hands out full batches.

    Admission follows AReaL's rule: with η = `max_staleness`, B = `prompts_per_step` and v updates published since the
    start, at most (η + v + 1)·B groups may have been admitted, thrown-away ones not counted. With η = 0 that is strict
    alternation: one batch a version. A group that would be too old for the next update has to be in this one, so a
    batch waits for it rather than wasting its tokens.

    Versions are the learner's: `first_version` is the one that is served when the flow begins, 0 or that of the
    checkpoint a run goes on from, and `published` tells the later ones.
    """

    def __init__(
        self,
        *,
        generator: Generator,
        scorer: Scorer,
        source: Source,
        settings: FlowSettings,
        clock: Clock,
        first_version: int = 0,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._generator, self._scorer, self._source = generator, scorer, source
        self._settings, self._clock, self._on_progress = settings, clock, on_progress
        self._admitted: dict[int, _Admitted] = {}
        self._num_admitted = 0  # counts names for groups; never goes down
        self._num_taken = 0
        self._last_batch: tuple[BuiltPrompt, ...] = ()
        self._first_version = self._version = first_version
        self._dropped_flat = 0
        self._generated_tokens = 0
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()

    def published(self, version: int) -> None:
        """A new adapter version is served."""
        self._version = version
        self._admit()

    def learned(self) -> None:
        """The last batch was learned from; `published` follows when the result is served."""
        self._last_batch = ()

    async def next_batch(self) -> Batch:
        """The next `prompts_per_step` groups, oldest first.

        Raises whatever generation or scoring raised; the groups under way are kept and `pending()` names them.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            self._admit()
            batch = self._take()
            if batch is not None:
                return batch
            self._changed.clear()
            await self._changed.wait()

    def pending(self) -> tuple[BuiltPrompt, ...]:
        """Problems drawn but not learned from, in order; what a resumed run has to do first.

        The last batch is among them until `learned` is called.
        """
        return (*self._last_batch, *(self._admitted[order].built for order in sorted(self._admitted)))

    async def close(self) -> None:
        """Cancel what is under way."""
        tasks = [item.task for item in self._admitted.values() if item.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _admit(self) -> None:
        settings = self._settings
        num_published = self._version - self._first_version
        num_batches = min(settings.max_staleness + num_published + 1, settings.max_batches)
        limit = num_batches * settings.prompts_per_step
        while self._failure is None and self._num_taken + len(self._admitted) < limit:
            item = _Admitted(built=self._source.next(), start_version=self._version)
            order = self._num_admitted
            self._num_admitted += 1
            self._admitted[order] = item
            item.task = asyncio.create_task(self._run(order, item), name=f"group-{order}")

    async def _run(self, order: int, item: _Admitted) -> None:
        try:
            item.scored = await self._generate_and_score(item.built)
        except Exception as error:  # handed to the consumer, who decides
            self._failure = self._failure or error
        else:
            if self._throw_away(item.scored):
                self._dropped_flat += 1
                del self._admitted[order]
                self._admit()
        self._report_progress()
        self._changed.set()

    async def _generate_and_score(self, built: BuiltPrompt) -> ScoredGroup:
        with self._clock.phase("generation"):
            completions_G = await self._generator.generate(built.prompt, self._settings.sampling)
        self._generated_tokens += sum(len(completion.token_ids) for completion in completions_G)
        with self._clock.phase("scoring"):
            members_G = await self._scorer.score(built.problem, built.text, completions_G)
        return ScoredGroup(
            prompt_id=built.prompt.prompt_id,
            prompt_token_ids=built.prompt.token_ids,
            members=tuple(members_G),
            category=built.problem.category,
        )

    def _throw_away(self, group: ScoredGroup) -> bool:
        bound = self._settings.max_refills * self._settings.prompts_per_step
        return self._settings.drop_flat_groups and group.flat and self._dropped_flat < bound

    def _take(self) -> Batch | None:
        """A batch if one may leave now: enough groups are ready, and none that is running would be too old later."""
        settings = self._settings
        oldest_kept = self._version - settings.max_staleness + 1  # start version that the next update still takes
        expiring = [order for order, item in self._admitted.items() if item.start_version < oldest_kept]
        if any(self._admitted[order].scored is None for order in expiring):
            return None
        assert len(expiring) <= settings.prompts_per_step, "admission lets in no more than one batch a version"
        ready = sorted(order for order, item in self._admitted.items() if item.scored is not None)
        first = set(expiring)
        chosen = sorted([*expiring, *(order for order in ready if order not in first)][: settings.prompts_per_step])
        if len(chosen) < settings.prompts_per_step:
            return None
        groups_P = tuple(self._finished(self._admitted.pop(order)) for order in chosen)
        self._num_taken += len(groups_P)
        self._last_batch = tuple(group.built for group in groups_P)
        batch = Batch(
            groups_P=groups_P, num_dropped_flat=self._dropped_flat, num_generated_tokens=self._generated_tokens
        )
        self._dropped_flat = self._generated_tokens = 0
        return batch

    @staticmethod
    def _finished(item: _Admitted) -> FinishedGroup:
        assert item.scored is not None
        return FinishedGroup(built=item.built, scored=item.scored)

    def _report_progress(self) -> None:
        ready = sum(item.scored is not None for item in self._admitted.values())
        self._on_progress(min(ready, self._settings.prompts_per_step), self._settings.prompts_per_step)
