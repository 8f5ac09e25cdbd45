"""What the driver can carry: tokens a second, and processor time a group, from the prompt to the step's record.

Everything on the driver's side is the real thing: flow, pool and balancer, calls through Ray, learner port, metrics,
record and table, and so is scoring: the actors that answer for all rollout workers, with random tokens at once, ask a
real reward service about them as a worker's actor does. One stub for all ranks takes a batch and learns nothing. So
what is measured is the driver and nothing else; `scored_beside` is the share of groups that came with their scores.
Its processor time is that of its whole process, Ray's threads included; `tokens_per_s` is completion tokens over it:
what one core can carry. The stubs share the machine, so wall time says less.

Then adapters of two sizes are published to all workers, which look at their bytes where they lie: what that takes the
driver must not grow with them. At last an eighth of the workers is lost at once, and as many come in their places.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from learner.types import UpdateMetrics
from orchestration.bench.machine import machine_line
from orchestration.bench.runs.driver_stubs import CountingScorer, NewProblems, StubRank, random_completion
from orchestration.cluster.calls import RemoteActor, session_folder
from orchestration.cluster.generator import RayMember, ScoringPool
from orchestration.cluster.joining import join_ray, leave_ray
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
from orchestration.errors import WorkerDiedError
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
from orchestration.run.ports import Generator
from orchestration.run.scorer import make_scorers
from orchestration.settings.config import RunConfig, load_config
from orchestration.storage.atomic import atomic_write
from orchestration.storage.cache import Progress
from orchestration.types import BuiltPrompt
from rollout_server.types import (
    AdapterPayload,
    AdapterProbe,
    AdapterVersion,
    Completion,
    Prompt,
    PublishReport,
    SamplingParams,
)

_NUM_ACTORS = 2
_RUN = "bench-driver"
_MAX_STALENESS = 1
_ADAPTER_MB = 1, 80
"""A 7B model's adapter of rank 16 has 40 to 160."""
_PUBLISHES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class DriverBench:
    """What is measured."""

    num_workers: int
    num_generations: int
    lengths: tuple[int, ...]
    """Of completions, tokens: a throughput each."""
    groups: tuple[int, ...]
    """A step: processor time a group each, at the shortest length."""


class _Mortal(RayMember):
    """A worker whose process only seems to die."""

    is_dead = False

    async def heartbeat(self) -> int:
        if self.is_dead:
            raise WorkerDiedError(f"{self.name} died")
        return await super().heartbeat()


class StubEngines:
    """Answers for many rollout workers."""

    def __init__(self, config: RunConfig) -> None:
        self._steps, self._scorer = 0, BesideScorer(config)
        self._made: dict[tuple[int, int], list[Completion]] = {}
        self._listener = Listener(self.generate, self.generate_scored, self.tell_probe, self.heartbeat)

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
            self._made[key] = [random_completion(sampling.max_completion_length, index) for index in range(key[0])]
        return [replace(completion, prompt_id=prompt.prompt_id) for completion in self._made[key]]

    async def publish(self, payload: AdapterPayload) -> PublishReport:
        version = AdapterVersion(number=payload.version, path="", key="", num_bytes=payload.num_bytes)
        return PublishReport(
            worker="stub", version=version, write_ms=0.0, load_ms=0.0, probe_ms=0.0, probe_difference=0.0
        )

    async def tell_probe(self, probe: AdapterProbe) -> None:
        """Is proven nothing."""

    async def heartbeat(self) -> int:
        return self._steps


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
        leave_ray()
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
    for size in _ADAPTER_MB:
        progress(f"publishing {size} MB", 0.9)
        cost = await driver.publishes(size)
        figures[f"publish_cpu_ms_{size}_mb"], figures[f"publish_wall_ms_{size}_mb"] = cost
    leaving = max(1, options.num_workers // 8)
    progress(f"{leaving} workers leave, and others come", 0.95)
    figures[f"cpu_ms_a_worker_of_{leaving}_replaced"] = await driver.replaced(leaving)
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
        self._num_groups, self._members = 0, list[_Mortal]()
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
            max_num_seqs=self._config.rollout.max_num_seqs,
        )
        await self.pool.start()
        self._generator = ScoringPool(self.pool, self._keeper, self._config, run_id=_RUN, node_id=own_node_id())
        self._learner = RayLearner(self._ranks, self._nothing, self._config, restarts=restarts)
        await self._learner.start()

    def _member(self, index: int, life: int) -> RayMember:
        actor: RemoteActor[Any] = RemoteActor(f"stub-{index}.{life}", self._engines[index % _NUM_ACTORS])
        self._members.append(_Mortal(actor, self._config.rollout, self._nothing))
        return self._members[-1]

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

    async def publishes(self, megabytes: int) -> tuple[float, float]:
        """An adapter of so many megabytes to all workers: milliseconds of the driver's processor, and of wall time."""
        await self._rank.call(StubRank.grow, timeout_s=60.0)(megabytes << 20)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(_PUBLISHES):
            reports = await self.pool.publish(await self._learner.export_adapter())
            assert [report.version.num_bytes for report in reports] == [megabytes << 20] * self._options.num_workers
        each = 1e3 / _PUBLISHES
        return (time.process_time() - cpu) * each, (time.perf_counter() - wall) * each

    async def replaced(self, number: int) -> float:
        """So many workers die at once: milliseconds of the driver's processor a worker until as many others serve the
        adapter; the watch over the rest goes on meanwhile."""
        leaving = self._members[:number]
        cpu = time.process_time()
        for member in leaving:
            member.is_dead = True
        while len(self.pool.members) < self._options.num_workers or set(leaving) & set(self.pool.members):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        return (time.process_time() - cpu) * 1e3 / number

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
