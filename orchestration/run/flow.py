"""From problems to scored batches: who is admitted, who is thrown away, and in what order batches leave.

The flow consumes problems (an endless source), waits for the generator and the scorer, and is unblocked by two things:
a group that finishes, and `published()`, which admits the next ones. It holds no model and no tensor.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

from learner.types import ScoredGroup
from orchestration.run.lookahead import Lookahead
from orchestration.run.metrics import Block
from orchestration.run.ports import Drawn, Generator, Scorer, ScoringGenerator, Source, scored_group
from orchestration.types import BuiltPrompt
from rollout_server.types import Completion, Prompt, SamplingParams, Turn


class Clock(Protocol):
    """Books wall time on phases."""

    def phase(self, name: str) -> AbstractContextManager[Block]: ...


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
    seed: int = 0
    """Of the run's sampling: a group's own follows from it, from the version it begins on and its number on that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedGroup:
    """A scored group with the problem it answers."""

    built: BuiltPrompt
    scored: ScoredGroup
    seed: int | None
    """By which it was drawn; None: in an earlier start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one optimizer step learns from."""

    groups_P: tuple[FinishedGroup, ...]
    num_dropped_flat: int
    """Flat groups thrown away and refilled since the last batch."""
    num_generated_tokens: int
    """Completion tokens sampled since the last batch, thrown-away groups included."""
    dropped_flat: tuple[ScoredGroup, ...] = ()
    """The flat groups that were thrown away."""

    @property
    def scored_P(self) -> tuple[ScoredGroup, ...]:
        return tuple(group.scored for group in self.groups_P)


@dataclass(slots=True)
class _Admitted:
    built: BuiltPrompt
    prompt: Prompt
    """The problem's, with the group's own seed and turn."""
    start_version: int
    """That of its oldest completion; until it is ready, the newest when it was admitted: no completion is older."""
    task: asyncio.Task[None] | None = None
    scored: ScoredGroup | None = None


def group_seed(run_seed: int, version: int, number: int, prompt_id: str) -> int:
    """The seed that a group's completions are drawn by, the same in every start of a run.

    Args:
        run_seed: The run's.
        version: Of the adapter that the group begins on.
        number: Of the group among those that begin on it.
        prompt_id: Of its prompt.

    Returns:
        62 bits.
    """
    digest = hashlib.sha256(f"group/{run_seed}/{version}/{number}/{prompt_id}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") >> 2


def _dated(completion: Completion, version: int) -> Completion:
    """An episode that failed before its first turn was sampled on no version: it has that on which its group began."""
    return completion if completion.num_sampled else replace(completion, adapter_version=version)


def _oldest_version(group: ScoredGroup) -> int:
    return min(member.completion.adapter_version for member in group.members)


class RolloutFlow:
    """Keeps groups under way, as many as it takes for the learner not to wait, and hands out full batches.

    The staleness bound is AReaL's: with η = `max_staleness`, B = `prompts_per_step` and v updates published since the
    start, at most (η + v + 1)·B groups may have been admitted, thrown-away ones not counted. With η = 0 that is strict
    alternation: one batch a version. With more it is seldom reached: `Lookahead` admits no more than keep the learner
    busy, and no more are asked for than keep the workers busy, so that each begins as late as it may.

    A batch takes those that are ready, the oldest first, and leaves stragglers to the next, unless one of them would be
    too old for it, or there would be more of them than it takes: for those it waits. Nothing else is looked at, and
    nothing that was generated is left out: all lengths are learned from as often as they are drawn, and what is late
    is so by η steps at most.

    Without staleness a version's groups are begun together, in order (`Turn`): which share an engine's batches, and so
    the last bits of their log-probabilities, does not depend on when they arrive.

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
        finished: Sequence[ScoredGroup] = (),
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._generator, self._scorer, self._source = generator, scorer, source
        self._scoring = generator if isinstance(generator, ScoringGenerator) else None
        self._settings, self._clock, self._on_progress = settings, clock, on_progress
        self._admitted: dict[int, _Admitted] = {}
        self._num_admitted = 0  # counts names for groups; never goes down
        self._num_taken = 0
        self._num_ready = 0  # of the admitted; the others are under way
        self._num_on_version = 0
        self._last_batch: tuple[FinishedGroup, ...] = ()
        self._first_version = self._version = first_version
        self._kept = list(finished)  # ready in an earlier start: taken when their problems are drawn
        self._num_kept_of: Counter[int] = Counter()
        self._dropped_flat = 0
        self._dropped: list[ScoredGroup] = []
        self._generated_tokens = 0
        self._failure: BaseException | None = None
        self._waits = False
        self._changed = asyncio.Event()
        batch = settings.prompts_per_step
        self._lookahead = Lookahead(batch, (settings.max_staleness + 1) * batch, limit=len(finished))
        self._last_take_at: float | None = None

    def published(self, version: int) -> None:
        """A new adapter version is served."""
        self._version, self._num_on_version = version, 0
        self._admit()

    def learned(self) -> None:
        """The last batch was learned from; `published` follows when the result is served."""
        self._last_batch = ()

    async def next_batch(self) -> Batch:
        """The next `prompts_per_step` groups, oldest first.

        Raises whatever generation or scoring raised; the groups under way are kept and `pending()` names them.
        """
        asked_at = asyncio.get_running_loop().time()
        while True:
            if self._failure is not None:
                raise self._failure
            self._admit()
            batch = self._take()
            if batch is not None:
                self._look_ahead(asked_at)
                return batch
            self._changed.clear()
            self._waits = self._num_ready > 0
            self._admit()
            try:
                await self._changed.wait()
            finally:
                self._waits = False

    def pending(self) -> tuple[BuiltPrompt, ...]:
        """Problems drawn but not learned from, in order; what a resumed run has to do first.

        The last batch is among them until `learned` is called.
        """
        learning = (group.built for group in self._last_batch)
        return (*learning, *(self._admitted[order].built for order in sorted(self._admitted)))

    def finished(self) -> tuple[ScoredGroup, ...]:
        """Groups of these that are ready."""
        learning = (group.scored for group in self._last_batch)
        ready = (self._admitted[order].scored for order in sorted(self._admitted))
        return (*learning, *(group for group in ready if group is not None), *self._kept)

    async def close(self) -> None:
        """Cancel what is under way."""
        tasks = [item.task for item in self._admitted.values() if item.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _look_ahead(self, asked_at: float) -> None:
        """A batch has just left, `asked_at` a time on the loop's clock: admit as many as that shows to be needed."""
        now, before = asyncio.get_running_loop().time(), self._last_take_at
        self._last_take_at = now
        if before is not None:  # nothing can be ready for the first
            self._lookahead.observe(step_s=now - before, waited_s=now - asked_at, left_over=self._num_ready)
        if self._settings.max_staleness:
            self._admit()

    def _room(self) -> int:
        """How many groups may be admitted now."""
        settings, in_hand = self._settings, len(self._admitted)
        num_published = self._version - self._first_version
        num_batches = min(settings.max_staleness + num_published + 1, settings.max_batches)
        counted = in_hand - self._num_ready if self._waits else in_hand  # what is ready lets another begin
        room = min(num_batches * settings.prompts_per_step - self._num_taken - in_hand, self._lookahead.limit - counted)
        max_sequences = self._generator.max_sequences
        if max_sequences is None or not settings.max_staleness:
            return room
        num_under_way = in_hand - self._num_ready
        return min(room, max(max_sequences // settings.sampling.num_generations, 1) - num_under_way)

    def _admit(self) -> None:
        settings = self._settings
        begun: list[tuple[int, _Admitted]] = []
        while self._failure is None and self._room() > 0:
            item = self._draw()
            order = self._num_admitted
            self._num_admitted += 1
            self._admitted[order] = item
            if item.scored is None:
                begun.append((order, item))
            else:
                self._num_ready += 1
        if settings.max_staleness == 0 and len(begun) == settings.prompts_per_step:  # a whole batch, not a refill
            key = f"version-{self._version}-from-{self._num_on_version - len(begun)}"
            for index, (_, item) in enumerate(begun):
                item.prompt = replace(item.prompt, turn=Turn(key=key, index=index, size=len(begun)))
        for order, item in begun:
            item.task = asyncio.create_task(self._run(order, item), name=f"group-{order}")

    def _draw(self) -> _Admitted:
        built, number = self._source.next(), self._num_on_version
        self._num_on_version += 1
        kept = self._take_kept(built.prompt.prompt_id)
        if kept is not None:
            return _Admitted(built=built, prompt=built.prompt, start_version=_oldest_version(kept), scored=kept)
        seed = group_seed(self._settings.seed, self._version, number, built.prompt.prompt_id)
        return _Admitted(built=built, prompt=replace(built.prompt, seed=seed), start_version=self._version)

    def _take_kept(self, prompt_id: str) -> ScoredGroup | None:
        """A group that an earlier start had ready, unless it is too old by now, or would be in its turn."""
        for index, group in enumerate(self._kept):
            if group.prompt_id == prompt_id:
                del self._kept[index]
                version = _oldest_version(group)
                num_before = sum(n for other, n in self._num_kept_of.items() if other <= version)
                if num_before >= self._num_places_for(version):
                    return None
                self._num_kept_of[version] += 1
                return group
        return None

    async def _run(self, order: int, item: _Admitted) -> None:
        try:
            scored = item.scored = await self._generate_and_score(item.built, item.prompt, item.start_version)
        except Exception as error:  # handed to the consumer, who decides
            self._failure = self._failure or error
        else:
            item.start_version = max(item.start_version, _oldest_version(scored))
            if self._throw_away(scored):
                self._dropped_flat += 1
                self._dropped.append(item.scored)
                del self._admitted[order]
            else:
                self._num_ready += 1
            self._admit()
        self._report_progress()
        self._changed.set()

    async def _generate_and_score(self, built: BuiltPrompt, prompt: Prompt, version: int) -> ScoredGroup:
        with self._clock.phase("generation") as generating:
            drawn = await self._draw_group(built, prompt)
            generating.was_later("scoring", drawn.scoring_s)
        if drawn.group is not None:
            self._generated_tokens += sum(member.completion.num_sampled for member in drawn.group.members)
            return drawn.group
        completions_G = [_dated(completion, version) for completion in drawn.completions_G]
        self._generated_tokens += sum(completion.num_sampled for completion in completions_G)
        with self._clock.phase("scoring"):
            members_G = await self._scorer.score(built.problem, built.text, completions_G)
        return scored_group(built, members_G)

    async def _draw_group(self, built: BuiltPrompt, prompt: Prompt) -> Drawn:
        sampling = self._settings.sampling
        if self._scoring is not None:
            return await self._scoring.generate_scored(built, prompt, sampling)
        return Drawn(completions_G=await self._generator.generate(prompt, sampling))

    def _throw_away(self, group: ScoredGroup) -> bool:
        bound = self._settings.max_refills * self._settings.prompts_per_step
        return self._settings.drop_flat_groups and group.flat and self._dropped_flat < bound

    def _take(self) -> Batch | None:
        """A batch if one may leave now: enough groups are ready, and those left will find a place before they are too
        old."""
        num_prompts = self._settings.prompts_per_step
        if self._num_ready < num_prompts:
            return None
        ready = (order for order, item in self._admitted.items() if item.scored is not None)
        chosen = sorted(ready, key=lambda order: (self._admitted[order].start_version, order))[:num_prompts]
        if self._leaves_too_many(frozenset(chosen)):
            return None
        chosen.sort()
        groups_P = tuple(self._finished(self._admitted.pop(order)) for order in chosen)
        self._num_taken += len(groups_P)
        self._num_ready -= len(groups_P)
        self._last_batch = groups_P
        batch = Batch(
            groups_P=groups_P,
            num_dropped_flat=self._dropped_flat,
            num_generated_tokens=self._generated_tokens,
            dropped_flat=tuple(self._dropped),
        )
        self._dropped.clear()
        self._dropped_flat = self._generated_tokens = 0
        return batch

    def _leaves_too_many(self, chosen: Collection[int]) -> bool:
        """Whether a batch of these leaves more groups of a version, and of those before it, than the batches take that
        follow until it is too old. Never so when all are ready: the oldest leave first, and admission is bounded."""
        left = Counter(item.start_version for order, item in self._admitted.items() if order not in chosen)
        num_left = 0
        for version in sorted(left):
            num_left += left[version]
            if num_left > self._num_places_for(version) - self._settings.prompts_per_step:
                return True
        return False

    def _num_places_for(self, version: int) -> int:
        """Groups in the batches, with the next, that may be learned from before this version is too old."""
        return (version + self._settings.max_staleness - self._version + 1) * self._settings.prompts_per_step

    @staticmethod
    def _finished(item: _Admitted) -> FinishedGroup:
        assert item.scored is not None
        return FinishedGroup(built=item.built, scored=item.scored, seed=item.prompt.seed)

    def _report_progress(self) -> None:
        self._on_progress(min(self._num_ready, self._settings.prompts_per_step), self._settings.prompts_per_step)
