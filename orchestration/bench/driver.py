"""What the driver can carry: tokens a second, and processor time a group, from the prompt to the step's record.

Everything on the driver's side is the real thing: flow, pool and balancer, calls through Ray, learner port, metrics,
record and table, and so is scoring: the actors that answer for all rollout workers, with random tokens at once, ask a
real reward service about them as a worker's actor does. One stub for all ranks takes a batch and learns nothing. So
what is measured is the driver and nothing else; `scored_beside` is the share of groups that came with their scores.
Its processor time is that of its whole process, Ray's threads included; `tokens_per_s` is completion tokens over it:
what one core can carry. The stubs share the machine, so wall time says less.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray

from learner.types import ScoredCompletion, ScoredGroup, UpdateMetrics
from orchestration.bench.machine import machine_line
from orchestration.cluster.calls import RemoteActor, session_folder
from orchestration.cluster.generator import RayMember, ScoringPool
from orchestration.cluster.joining import join_ray
from orchestration.cluster.learner import RayLearner
from orchestration.cluster.nodes import own_node_id
from orchestration.cluster.reward.beside import BesideScorer
from orchestration.cluster.reward.deployment import new_restarts, reward_client
from orchestration.cluster.reward.keeper import RewardKeeper
from orchestration.cluster.upkeep.garbage import collect_seldom
from orchestration.cluster.upkeep.lines import Endpoint, Listener
from orchestration.cluster.upkeep.pool import RolloutPool
from orchestration.cluster.upkeep.sessions import remove_session
from orchestration.cluster.upkeep.whereabouts import Whereabouts
from orchestration.run.flow import Batch, FlowSettings, RolloutFlow
from orchestration.run.ledger.records import (
    RunState,
    StepRecord,
    encodable,
    given_to_rewards,
    storable,
    write_record,
)
from orchestration.run.ledger.tables import table_bytes
from orchestration.run.metrics import PhaseClock, step_row
from orchestration.run.ports import Generator, Scorer
from orchestration.run.scorer import make_scorers
from orchestration.settings.config import RunConfig, load_config
from orchestration.storage.atomic import atomic_write
from orchestration.storage.cache import Progress
from orchestration.types import BuiltPrompt, Problem
from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.types import Completion, FinishReason, Prompt, SamplingParams

_NUM_ACTORS = 2
_PROMPT_TOKENS = 200
_VOCABULARY = 150_000
_SEED = 0
_RUN = "bench-driver"
_MAX_STALENESS = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverBench:
    """What is measured."""

    num_workers: int
    num_generations: int
    lengths: tuple[int, ...]
    """Of completions, tokens: a throughput each."""
    groups: tuple[int, ...]
    """A step: processor time a group each, at the shortest length."""


class StubEngines:
    """Answers for many rollout workers."""

    def __init__(self, config: RunConfig) -> None:
        self._steps, self._scorer = 0, BesideScorer(config)
        self._made: dict[tuple[int, int], list[Completion]] = {}
        self._listener = Listener(self.generate, self.generate_scored, self.heartbeat)

    async def here(self) -> Whereabouts:
        return Whereabouts.here(ray.get_runtime_context().get_node_id())

    async def start(self) -> None:
        """Has nothing to load."""

    async def listen(self) -> Endpoint | None:
        return await self._listener.listen(ray.util.get_node_ip_address())

    async def generate(self, asked: bytes) -> bytes:
        return pickle.dumps(self._answer(*pickle.loads(asked)), pickle.HIGHEST_PROTOCOL)

    async def generate_scored(self, asked: bytes) -> bytes:
        prompt, sampling, problem, text, address = pickle.loads(asked)
        built = BuiltPrompt(problem=problem, prompt=prompt, text=text)
        drawn = await self._scorer.score(built, self._answer(prompt, sampling), address)
        return pickle.dumps(drawn, pickle.HIGHEST_PROTOCOL)

    def _answer(self, prompt: Prompt, sampling: SamplingParams) -> list[Completion]:
        self._steps += 1
        key = sampling.num_generations, sampling.max_completion_length
        if key not in self._made:
            self._made[key] = [_completion(sampling.max_completion_length, index) for index in range(key[0])]
        return [replace(completion, prompt_id=prompt.prompt_id) for completion in self._made[key]]

    async def heartbeat(self) -> int:
        return self._steps


def _completion(length: int, seed: int) -> Completion:
    random = np.random.default_rng(seed)
    return Completion(
        prompt_id="",
        token_ids=TokenIds(random.integers(0, _VOCABULARY, length).tolist()),
        sampling_logprobs=Logprobs((-random.exponential(size=length).astype(np.float32)).tolist()),
        text="".join(random.choice(list("abcdefghij klmnop"), 4 * length).tolist()),
        finish_reason=FinishReason.STOP,
        adapter_version=0,
    )


class StubRank:
    """Answers for the learner."""

    def __init__(self) -> None:
        self._steps = 0

    async def update(self, batch: bytes, max_staleness: int, step: int) -> UpdateMetrics:
        del max_staleness
        groups: Sequence[ScoredGroup] = pickle.loads(batch)
        self._steps += 1
        tokens = sum(len(member.completion.token_ids) for group in groups for member in group.members)
        advantages = tuple(tuple(member.total for member in group.members) for group in groups)
        return UpdateMetrics(step=step, num_tokens=tokens, advantages=advantages, seconds=1.0)

    async def heartbeat(self) -> int:
        return self._steps


class CountingScorer:
    """The driver's scorer, and how many groups it was left."""

    def __init__(self, inner: Scorer) -> None:
        self._inner, self.reward_names, self.num_groups = inner, inner.reward_names, 0

    async def score(
        self, problem: Problem, prompt_text: str, completions: Sequence[Completion]
    ) -> Sequence[ScoredCompletion]:
        self.num_groups += 1
        return await self._inner.score(problem, prompt_text, completions)


class NewProblems:
    """Prompts that are ready, of which few share their tokens."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        random = np.random.default_rng(_SEED)
        self._tokens = [TokenIds(random.integers(0, _VOCABULARY, _PROMPT_TOKENS).tolist()) for _ in range(256)]

    def next(self) -> BuiltPrompt:
        number = next(self._numbers)
        name, tokens = f"problem-{number}", self._tokens[number % len(self._tokens)]
        problem = Problem(problem_id=name, question=name, reference={"final_answer": "1"})
        return BuiltPrompt(problem=problem, prompt=Prompt(prompt_id=name, token_ids=tokens), text=name)


def run(options: DriverBench, progress: Progress) -> dict[str, Any]:
    """Measure the driver at all lengths and numbers of groups.

    Returns:
        `machine`, `settings` and `figures`: `tokens_per_s_LENGTH` of a core, `cpu_us_a_group_LENGTH`, and at the
        shortest length `cpu_us_a_group_of_GROUPS` a step, and what one takes that is scored from the driver;
        `books_us_a_group_LENGTH` of it is row, record and table.

    Raises:
        RlvrError: Ray does not start.
    """
    return asyncio.run(_measure(options, progress))


async def _measure(options: DriverBench, progress: Progress) -> dict[str, Any]:
    config = load_config("tiny", ["dashboard=false", f"max_staleness={_MAX_STALENESS}"])
    progress("starting Ray and a reward service", 0.0)
    await asyncio.to_thread(join_ray, config, namespace=f"rlvr-bench-driver-{os.getpid()}")
    try:
        with tempfile.TemporaryDirectory(prefix="rlvr-bench-driver-") as logs:
            async with reward_client(config, Path(logs)) as keeper:
                return await _measured(_Driver(config, options, keeper), options, progress)
    finally:
        session = session_folder()
        ray.shutdown()
        if session is not None:
            remove_session(session)


async def _measured(driver: _Driver, options: DriverBench, progress: Progress) -> dict[str, Any]:
    await driver.start()
    await driver.steps(groups=64, length=min(options.lengths), at_least=256)  # imports, connections
    collect_seldom()
    figures: dict[str, float] = {}
    base, shortest = max(options.num_workers, 64), min(options.lengths)
    for length in options.lengths:
        progress(f"groups of {options.num_generations} x {length} tokens", 0.2)
        found = await driver.steps(groups=base, length=length, at_least=2048)
        figures[f"tokens_per_s_{length}"] = 1e6 * options.num_generations * length / found.cpu_us
        figures[f"cpu_us_a_group_{length}"] = found.cpu_us
        figures[f"books_us_a_group_{length}"] = found.books_us
        figures[f"wall_us_a_group_{length}"] = found.wall_us
    for groups in options.groups:
        progress(f"steps of {groups} groups", 0.6)
        found = await driver.steps(groups=groups, length=shortest, at_least=2048)
        figures[f"cpu_us_a_group_of_{groups}"] = found.cpu_us
    figures["scored_beside"] = driver.scored_beside()
    progress("groups scored from here", 0.9)
    found = await driver.steps(groups=base, length=shortest, at_least=2048, generator=driver.pool)
    figures[f"cpu_us_a_group_{shortest}_scored_from_the_driver"] = found.cpu_us
    await driver.close()
    settings = {
        "workers": options.num_workers,
        "stub_actors": _NUM_ACTORS,
        "num_generations": options.num_generations,
        "stubs": "engines, which ask a real reward service, and learner, in actors on this machine",
        "max_staleness": _MAX_STALENESS,
    }
    return {"machine": machine_line(), "settings": settings, "figures": figures}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Cost:
    """Of one group, microseconds."""

    cpu_us: float
    wall_us: float
    books_us: float


class _Driver:
    """The driver's parts, put together as a run does it."""

    def __init__(self, config: RunConfig, options: DriverBench, keeper: RewardKeeper) -> None:
        self._config, self._options, self._keeper = config, options, keeper
        self._scorer = CountingScorer(make_scorers(config, keeper, run_id=_RUN)[0])
        self._num_groups = 0
        engines, rank = ray.remote(StubEngines), ray.remote(StubRank)
        self._engines = [engines.options(num_cpus=0, max_concurrency=10_000).remote(config) for _ in range(_NUM_ACTORS)]
        self._rank: RemoteActor[Any] = RemoteActor("stub-rank", rank.options(num_cpus=0, max_concurrency=16).remote())
        self._source = NewProblems()

    async def start(self) -> None:
        restarts = new_restarts(self._config)
        self.pool: RolloutPool[RayMember] = RolloutPool(
            self._member,
            num_workers=self._options.num_workers,
            stall_timeout_s=600.0,
            new_restarts=lambda: new_restarts(self._config),
        )
        await self.pool.start()
        self._generator = ScoringPool(self.pool, self._keeper, self._config, run_id=_RUN, node_id=own_node_id())
        self._learner = RayLearner(self._ranks, self._nothing, self._config, restarts=restarts)
        await self._learner.start()

    def _member(self, index: int, life: int) -> RayMember:
        del life
        actor: RemoteActor[Any] = RemoteActor(f"stub-{index}", self._engines[index % _NUM_ACTORS])
        return RayMember(actor, self._config.rollout, self._nothing)

    async def _ranks(self, life: int) -> Sequence[RemoteActor[Any]]:
        del life
        return [self._rank]

    @staticmethod
    async def _nothing(*arguments: object) -> None:
        del arguments

    def scored_beside(self) -> float:
        """The share of all groups until now that came with their scores."""
        return 1.0 - self._scorer.num_groups / self._num_groups

    async def close(self) -> None:
        await self.pool.close()

    async def steps(self, *, groups: int, length: int, at_least: int, generator: Generator | None = None) -> _Cost:
        """Steps of so many groups until there were `at_least` groups, all from the first asked for to the last in the
        books; scored by their workers, unless a generator says otherwise."""
        num_steps = -(-at_least // groups)
        sampling = SamplingParams(num_generations=self._options.num_generations, max_completion_length=length)
        settings = FlowSettings(
            prompts_per_step=groups,
            max_staleness=_MAX_STALENESS,
            drop_flat_groups=False,
            max_refills=0,
            sampling=sampling,
            max_batches=num_steps,
        )
        flow = RolloutFlow(
            generator=generator or self._generator,
            scorer=self._scorer,
            source=self._source,
            settings=settings,
            clock=PhaseClock(),
        )
        cpu, wall, books = time.process_time(), time.perf_counter(), 0.0
        with tempfile.TemporaryDirectory(prefix="rlvr-bench-driver-") as folder:
            for step in range(num_steps):
                batch = await flow.next_batch()
                update = await self._learner.update(batch.scored_P)
                flow.learned()
                self._num_groups += groups
                names = self._scorer.reward_names
                books += await asyncio.to_thread(_keep_books, batch, update, names, Path(folder))
                flow.published(step + 1)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        await flow.close()
        each = 1e6 / (num_steps * groups)
        return _Cost(cpu_us=cpu * each, wall_us=wall * each, books_us=books * each)


def _keep_books(batch: Batch, update: UpdateMetrics, reward_names: Sequence[str], folder: Path) -> float:
    """The step's row, record and table; how long they took of this thread's processor time, seconds."""
    began = time.thread_time()
    row: Mapping[str, Any] = step_row(
        batch.scored_P,
        update,
        reward_names,
        {"generation": 1.0},
        generated_tokens=batch.num_generated_tokens,
        step_seconds=1.0,
    )
    record = StepRecord(
        groups_P=storable(batch.scored_P),
        references={group.built.prompt.prompt_id: given_to_rewards(group.built.problem) for group in batch.groups_P},
        prompt_texts={group.built.prompt.prompt_id: encodable(group.built.text) for group in batch.groups_P},
        seeds=tuple(group.seed for group in batch.groups_P),
        reward_names=tuple(reward_names),
        update=update,
        row=dict(row),
        adapter="",
        state=RunState(step=update.step, cursor=0, pending=(), before=None, tokens={}, seconds={}),
    )
    write_record(folder, record)
    atomic_write(folder / "table.parquet", table_bytes(record))
    return time.thread_time() - began
