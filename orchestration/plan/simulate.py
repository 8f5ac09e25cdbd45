"""A run in virtual time: the run's own flow and balancer, with engines, scoring and learner that only take time.

Admission, staleness, refills and the order of batches are those of `run/flow.py`, and prompts go to workers as
`rollout_server/balancing.py` says. What is imitated is the loop around them: learn, publish, go on.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from learner.types import ScoredCompletion, ScoredGroup
from orchestration.plan.lengths import Lengths, lengths_of
from orchestration.plan.rates import CPU_BLOCK, GPU_BLOCK, Rates
from orchestration.plan.servers import Server, Site
from orchestration.plan.virtual_time import run_virtually
from orchestration.run.flow import Batch, FlowSettings, RolloutFlow
from orchestration.run.metrics import PhaseClock
from orchestration.run.ports import AdapterHandle
from orchestration.settings.config import RunConfig
from orchestration.types import BuiltPrompt, Problem
from rollout_server.balancing import Balancer
from rollout_server.types import Completion, Prompt, PublishReport, SamplingParams

MOST_SEQUENCES = 1024
"""Of a simulated step. A larger run is simulated as a part of itself: some of its workers with their share of the
prompts."""
STEPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Who has which processors."""

    workers: int
    ranks: int
    shared: bool = False
    """Worker i and rank i on one GPU; on a machine without GPUs all of them on its cores."""
    cpu: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a simulated run does, of its steps after the first few."""

    split: Split
    step_s: float
    generation_s: float
    """Of a step, in which generation was under way and nothing that the loop waits for (as `PhaseClock` has it)."""
    learning_s: float
    publishing_s: float
    rollout_busy: float
    """Share of the time in which a worker's engine has work, mean over workers."""
    learner_busy: float
    generated_tokens: float
    """A step."""
    age: float
    """Of completions, updates."""

    @property
    def steps_an_hour(self) -> float:
        return 3600 / self.step_s


def simulate(
    config: RunConfig, split: Split, rates: Rates, lengths: Lengths, *, seed: int = 0, num_steps: int = STEPS
) -> Outcome:
    """Run `num_steps` steps, after those in which the pipeline fills.

    Args:
        config: The run; its numbers of workers and ranks are not looked at.
        split: Who works where.
        rates: Of one worker and one rank.
        lengths: What is sampled.
        seed: Of the lengths; the same gives the same outcome.
    """
    return run_virtually(_Simulation(config, split, rates, lengths, seed).run(num_steps))


def part(config: RunConfig, split: Split) -> tuple[int, int]:
    """Workers and prompts a step that are simulated, for the whole run.

    >>> from orchestration.settings.config import RunConfig
    >>> part(RunConfig(prompts_per_step=4096), Split(workers=353, ranks=159))
    (11, 128)
    """
    sequences = config.prompts_per_step * config.rollout.num_generations
    workers = max(1, round(split.workers / max(1.0, sequences / MOST_SEQUENCES)))
    return workers, max(1, round(config.prompts_per_step * workers / split.workers))


class _Simulation:
    """One run: source, generator and scorer of the flow, and the loop."""

    reward_names: Sequence[str] = ("reward",)

    def __init__(self, config: RunConfig, split: Split, rates: Rates, lengths: Lengths, seed: int) -> None:
        self._config, self._split, self._rates, self._lengths = config, split, rates, lengths
        self._workers, self._prompts = part(config, split)
        self._parts = config.prompts_per_step / self._prompts
        self._random = random.Random(seed)
        self._drawn: dict[str, ScoredGroup] = {}
        self._begun_on: dict[str, int] = {}
        """Versions; completions themselves stay as they were drawn, since copying them is most of the work."""
        self._number = self._version = 0
        self._balancer = Balancer(self._workers)
        self.max_sequences = 2 * rates.slots * self._workers  # as the pool of real workers has it

    async def run(self, num_steps: int) -> Outcome:
        loop, config = asyncio.get_running_loop(), self._config
        self._start_servers()
        clock = PhaseClock(now=loop.time)
        first = config.max_staleness + 1
        flow = self._flow(clock, first + num_steps)
        ages, tokens, began, before = [], [], 0.0, clock.seconds()
        busy = (0.0, 0.0)
        for step in range(first + num_steps):
            if step == first:
                began, before, busy = loop.time(), clock.seconds(), self._busy()
            batch = await flow.next_batch()
            age = self._age(batch)
            if step >= first:
                ages.append(age)
                tokens.append(batch.num_generated_tokens * self._parts)
            with clock.phase("learning"):
                await self._learner.work([self._rates.learning_s(self._largest_share(batch))])
            flow.learned()
            with clock.phase("publishing"):
                await self._publisher.work([self._rates.publish_s])
            self._version = step + 1
            flow.published(self._version)
            await asyncio.sleep(self._rates.other_s)
        took, after = loop.time() - began, clock.seconds()
        rollout, learner = (now - then for now, then in zip(self._busy(), busy, strict=True))
        await flow.close()
        return Outcome(
            split=self._split,
            step_s=took / num_steps,
            **{
                f"{phase}_s": (after[phase] - before[phase]) / num_steps
                for phase in ("generation", "learning", "publishing")
            },
            rollout_busy=rollout / took,
            learner_busy=learner / took,
            generated_tokens=fmean(tokens),
            age=fmean(ages),
        )

    def _start_servers(self) -> None:
        split, rates = self._split, self._rates
        workers = self._workers
        # On one machine's cores all share one site; on GPUs each has its own, and only the rank is its neighbour.
        sites = [Site()] * workers if split.cpu else [Site() for _ in range(workers)]
        pace: Callable[[int], float] = rates.tick_s
        self._engines = [Server(pace, rates.slots, [site] if split.shared else []) for site in sites]
        shared = list({id(site): site for site in sites}.values()) if split.shared else []
        self._learner, self._publisher = (Server(lambda count: 1.0, 1, shared) for _ in range(2))

    def _flow(self, clock: PhaseClock, num_batches: int) -> RolloutFlow:
        config = self._config
        return RolloutFlow(
            generator=self,
            scorer=self,
            source=self,
            clock=clock,
            settings=FlowSettings(
                prompts_per_step=self._prompts,
                max_staleness=config.max_staleness,
                drop_flat_groups=config.drop_flat_groups,
                max_refills=config.max_refills,
                max_batches=num_batches,
                sampling=SamplingParams(
                    num_generations=config.rollout.num_generations,
                    max_completion_length=config.rollout.max_completion_length,
                ),
                seed=config.seed,
            ),
        )

    def _busy(self) -> tuple[float, float]:
        return fmean(engine.busy_s for engine in self._engines), self._learner.busy_s

    def _age(self, batch: Batch) -> float:
        return fmean(self._version - self._begun_on.pop(group.prompt_id) for group in batch.scored_P)

    def _largest_share(self, batch: Batch) -> float:
        """Distinct tokens of the rank that has most, of groups that have a gradient; all where `beta` wants all."""
        computed = [group for group in batch.scored_P if self._config.learner.loss.beta > 0 or not group.flat]
        share = math.ceil(len(computed) * self._parts / self._split.ranks)  # groups of the largest share
        if share <= len(computed):
            return max(
                (self._lengths.distinct_tokens(computed[i : i + share]) for i in range(0, len(computed), share)),
                default=0.0,
            )
        return self._lengths.distinct_tokens(computed) * share / max(1, len(computed))

    # --- what the flow works with

    def next(self) -> BuiltPrompt:
        self._number += 1
        name, rollout = str(self._number), self._config.rollout
        group = self._lengths.group(name, rollout.num_generations, rollout.max_completion_length, self._random)
        self._drawn[name] = group
        prompt = Prompt(prompt_id=name, token_ids=group.prompt_token_ids)
        return BuiltPrompt(
            problem=Problem(problem_id=name, question="", reference={}, category=group.category), prompt=prompt, text=""
        )

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> Sequence[Completion]:
        group = self._drawn[prompt.prompt_id]
        self._begun_on[prompt.prompt_id] = self._version
        lengths = lengths_of(group)
        worker = self._balancer.begin(prefix=0, num_sequences=len(lengths))
        block = CPU_BLOCK if self._split.cpu else GPU_BLOCK
        prefill_s = self._rates.prefill_s(len(prompt.token_ids), len(lengths), block)
        try:
            await self._engines[worker].work(lengths, extra_s=prefill_s)
        finally:
            self._balancer.end(worker, num_sequences=len(lengths))
        return [member.completion for member in group.members]

    async def publish(self, adapter: AdapterHandle) -> Sequence[PublishReport]:
        """Part of the protocol, and never called: the simulated loop accounts for a publish itself."""
        raise NotImplementedError("the simulated loop publishes by itself")

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        await asyncio.sleep(self._rates.scoring_s)
        return self._drawn.pop(problem.problem_id).members
