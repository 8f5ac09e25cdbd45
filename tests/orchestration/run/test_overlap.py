"""What staleness buys, in virtual time: the flow itself, between workers and a learner that only take time."""

from __future__ import annotations

import asyncio
import random
import selectors
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from learner.step.plan import refuse_stale
from orchestration.run.flow import FlowSettings, RolloutFlow
from rollout_server.types import Completion, FinishReason, Prompt, SamplingParams
from tests.orchestration.fakes import FakeClock, FakeScorer, FakeSource

PROMPTS, GENERATIONS = 8, 4


class _Jump(selectors.DefaultSelector):
    """Answers at once, with the time put forward."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += max(0.0, timeout or 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop on which waiting takes no time."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


class TimedWorkers:
    """A token takes a second. As in a worker, a completion begins when there is a place for it, on the version of then.

    Args:
        length: Of the completion of this prompt and index.
        places: Sequences that are computed at once.
    """

    def __init__(self, length: Callable[[str, int], int], places: int) -> None:
        self._length, self._places = length, asyncio.Semaphore(places)
        self.max_sequences = 2 * places
        self.version = 0
        self.lengths: list[int] = []
        """Of all completions that were begun."""
        self.waits: list[float] = []
        """Of each group, until its first completion begins."""

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        asked_at, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()

        async def draw(index: int) -> Completion:
            async with self._places:
                if not index:
                    self.waits.append(loop.time() - asked_at)
                version, length = self.version, self._length(prompt.prompt_id, index)
                self.lengths.append(length)
                await asyncio.sleep(length)
            return Completion(
                prompt_id=prompt.prompt_id,
                token_ids=(1,) * length,
                sampling_logprobs=(-1.0,) * length,
                text="",
                finish_reason=FinishReason.STOP,
                adapter_version=version,
            )

        return await asyncio.gather(*(draw(index) for index in range(sampling.num_generations)))

    async def publish(self, adapter: object) -> Sequence[object]:
        raise NotImplementedError


@dataclass
class Outcome:
    """Of a simulated run, by step."""

    taken_at: list[float] = field(default_factory=list)
    ages: list[list[int]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    mixed_groups: int = 0
    workers: TimedWorkers | None = None

    @property
    def step_s(self) -> float:
        """Once the flow has found its pace."""
        settled = self.taken_at[len(self.taken_at) // 2 :]
        return statistics.mean(b - a for a, b in pairwise(settled))

    @property
    def mean_age(self) -> float:
        return statistics.mean(age for ages in self.ages[len(self.ages) // 2 :] for age in ages)


def simulate(
    max_staleness: int, learning_s: float, length: Callable[[str, int], int], *, steps: int = 40, places: int = 48
) -> Outcome:
    async def run() -> Outcome:
        workers, outcome = TimedWorkers(length, places), Outcome()
        outcome.workers = workers
        settings = FlowSettings(
            prompts_per_step=PROMPTS,
            max_staleness=max_staleness,
            drop_flat_groups=False,
            max_refills=0,
            max_batches=steps,
            sampling=SamplingParams(num_generations=GENERATIONS),
        )
        flow = RolloutFlow(
            generator=workers,  # type: ignore[arg-type]  # publishes nothing
            scorer=FakeScorer(),
            source=FakeSource(),
            settings=settings,
            clock=FakeClock(),
        )
        for step in range(steps):
            groups = (await flow.next_batch()).scored_P
            outcome.taken_at.append(asyncio.get_running_loop().time())
            refuse_stale(groups, policy_version=step, max_staleness=max_staleness)
            completions = [member.completion for group in groups for member in group.members]
            outcome.ages.append([step - completion.adapter_version for completion in completions])
            outcome.lengths.append([len(completion.token_ids) for completion in completions])
            outcome.mixed_groups += sum(len({m.completion.adapter_version for m in g.members}) > 1 for g in groups)
            await asyncio.sleep(learning_s)
            flow.learned()
            workers.version = step + 1
            flow.published(step + 1)
        return outcome

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(run())


def long_tailed(seed: int) -> Callable[[str, int], int]:
    """Log-normal lengths, as those of completions: the longest of a batch is many times the median."""
    return lambda name, index: max(1, min(500, round(random.Random(f"{seed}/{name}/{index}").lognormvariate(3.5, 0.9))))


@pytest.mark.parametrize("max_staleness", [1, 2, 4])
def test_with_generation_as_fast_as_learning_ages_are_those_of_overlap_alone(max_staleness: int) -> None:
    even = simulate(max_staleness, 40.0, lambda name, index: 40)
    assert 40.0 / even.step_s >= 0.9
    assert even.mean_age <= 1.1  # what is learned next is generated while a version is learned: 1 is the least
    quick = simulate(max_staleness, 40.0, lambda name, index: 5)
    assert quick.step_s == pytest.approx(40.0)
    assert max(max(ages) for ages in quick.ages) == 1


def test_stragglers_do_not_hold_the_batch_where_staleness_allows() -> None:
    step_s = {eta: simulate(eta, 60.0, long_tailed(0)).step_s for eta in (0, 1, 2, 4)}
    assert step_s[0] > step_s[1] > step_s[2] > step_s[4]
    generation_s = step_s[0] - 60.0
    assert min(max(generation_s, 60.0) / step_s[eta] for eta in (1, 2, 4)) >= 0.9
    slow = simulate(4, 200.0, long_tailed(0))  # learning takes longer than all but the longest completions
    assert 200.0 / slow.step_s >= 0.9
    assert slow.mean_age < 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("max_staleness", "learning_s"), [(1, 60.0), (4, 20.0), (4, 100.0)])
def test_lengths_are_learned_from_as_often_as_they_are_drawn(max_staleness: int, learning_s: float, seed: int) -> None:
    outcome = simulate(max_staleness, learning_s, long_tailed(seed), steps=60)
    assert outcome.workers is not None
    learned = [length for lengths in outcome.lengths for length in lengths]
    assert sorted(learned) == sorted(outcome.workers.lengths)  # each, and once
    # Nor are the short ones learned from first, but for the few that overtake others by `max_staleness` steps.
    third = len(outcome.lengths) // 3
    middle = statistics.mean(length for lengths in outcome.lengths[third : 2 * third] for length in lengths)
    error = statistics.stdev(learned) / len(learned) ** 0.5 * 3**0.5
    assert middle == pytest.approx(statistics.mean(learned), abs=4 * error)


def test_a_groups_completions_begin_as_there_is_room_and_each_is_of_the_version_of_then() -> None:
    outcome = simulate(4, 20.0, long_tailed(1), places=10)
    assert outcome.mixed_groups > 0  # and `refuse_stale` looked at each completion
    assert outcome.workers is not None
    longest = 500.0 * GENERATIONS * PROMPTS * 5 / 10
    assert max(outcome.workers.waits) < longest  # places are taken in turn: whoever waits is served
