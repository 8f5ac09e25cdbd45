"""How long an update takes to be served by every worker, and what that costs the requests under way.

The real thing: rollout workers and a learner as Ray actors, and after each update the adapter exported, sent, loaded,
proven by its probe, and made current; first while nothing else goes on, then with generation running all the time.

A token is *late* when its gap to the token before, during a publish, exceeds the longest gap seen while nothing was
published or learned, in the same run, by more than one median engine step; `delayed_requests` counts them, so a request
that publishing cost more than one engine step counts at least once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from learner.types import ScoredCompletion, ScoredGroup
from orchestration.bench.machine import machine_line
from orchestration.bench.neighbours import busy_neighbours
from orchestration.cluster.actors import RolloutActor
from orchestration.cluster.cluster import Cluster
from orchestration.cluster.generator import RayMember
from orchestration.cluster.learner import RayLearner
from orchestration.cluster.upkeep.pool import RolloutPool
from orchestration.concurrency import gather_or_cancel
from orchestration.data.source import PromptSource
from orchestration.machine import doctor
from orchestration.machine.placement import Placement
from orchestration.models.prompting import make_prompt_builder, training_sampling
from orchestration.models.resolve import resolve_model
from orchestration.report.progress import counted
from orchestration.settings.config import RunConfig, load_config
from orchestration.storage.cache import Progress
from rollout_server.forking.leftovers import owned_prefix
from rollout_server.types import EngineStep, PublishReport, SamplingParams

NUM_UPDATES = 8
"""Publishes measured in each condition; one more goes first and is not counted."""
_LEARNED_TOKENS = 48, 16
"""Tokens of a prompt's end and of a completion that an update learns from: enough to move the adapter. How long an
update takes is `rlvr bench learner`'s question."""


def run(overrides: Sequence[str], progress: Progress, *, neighbours: int = 0) -> dict[str, Any]:
    """Measure publishing while nothing and while generation runs.

    Args:
        overrides: A recipe, if one is named first, and settings, as for `rlvr train`.
        progress: Told what is being done.
        neighbours: Busy loops, beside which it is measured under load once more.

    Returns:
        `machine`, `settings` and `figures`; those that end in `_idle` and `_neighbours` are of these conditions, all
        others of generation under way. Of a publish: `export_ms` until the bytes are in the object store, `write_ms`,
        `load_ms`, `probe_ms` of the worker; the learner's `training_probe_ms` goes on beside them.

    Raises:
        RlvrError: The machine or a setting does not allow it.
        RolloutError: An engine failed.
        LearnerError: A learner rank failed.
    """
    words = list(overrides)
    recipe = words.pop(0) if words and "=" not in words[0] else "arithmetic"
    config = load_config(recipe, ["dashboard=false", *words])
    doctor.require_machine(config)
    return asyncio.run(_measure(config, progress, neighbours))


@dataclass(slots=True)
class _Rounds:
    """What the publishes of one condition took."""

    publish_ms: list[float] = field(default_factory=list)
    export_ms: list[float] = field(default_factory=list)
    training_probe_ms: list[float] = field(default_factory=list)
    reports: list[PublishReport] = field(default_factory=list)
    quiet: list[EngineStep] = field(default_factory=list)
    published: list[EngineStep] = field(default_factory=list)


async def _measure(config: RunConfig, progress: Progress, neighbours: int) -> dict[str, Any]:
    begin = counted(progress, 3 + NUM_UPDATES * (3 if neighbours else 2))
    begin(f"preparing the model {config.model.name} and its prompts")
    problems = config.data.load()
    model_path = resolve_model(config.model.name, config.model.revision, progress=progress)
    builder = make_prompt_builder(config, problems, model_path)
    source = PromptSource(problems.train, builder.build, config.seed)
    sampling = training_sampling(config, builder)
    async with AsyncExitStack() as stack:
        begin("starting Ray, the vLLM engines and the learner ranks")
        cluster = Cluster(config, run_id=f"bench-sync-{os.getpid()}")
        stack.push_async_callback(cluster.shutdown)
        placement = cluster.connect()
        generator, learner = await cluster.start_both(cluster.start_rollout(), cluster.start_learner())
        bench = _Bench(generator, learner, await _small_group(generator, source, sampling))
        begin("warming up")
        await bench.publish(_Rounds())
        found: dict[str, _Rounds] = {"_idle": _Rounds()}
        for number in range(1, NUM_UPDATES + 1):
            begin(f"publishing, update {number} of {NUM_UPDATES}, idle")
            await bench.publish(found["_idle"])
        load = _Load(generator, source, sampling)
        stack.push_async_callback(load.stop)
        load.start(config.prompts_per_step * len(placement.rollout))
        for suffix, loops in (("", 0), ("_neighbours", neighbours))[: 2 if neighbours else 1]:
            rounds = found[suffix] = _Rounds()
            with busy_neighbours(loops) if loops else nullcontext():
                for number in range(1, NUM_UPDATES + 1):
                    begin(f"publishing, update {number} of {NUM_UPDATES}, beside generation and {loops} loops")
                    await bench.quiet(rounds, load, config.prompts_per_step)
                    await bench.publish(rounds)
        num_requests, failed = load.num_requests, load.num_failed
    figures: dict[str, float] = {"requests": num_requests, "failed_requests": failed}
    for suffix, rounds in found.items():
        figures |= {f"{name}{suffix}": value for name, value in _figures(rounds).items()}
    copy_ms = _copy_ms(int(figures["adapter_bytes"]), Path(config.rollout.adapter_dir))
    figures |= {"copy_ms": copy_ms, "publish_over_copy": figures["publish_ms_idle"] / copy_ms}
    return {"machine": machine_line(), "settings": _settings(config, placement), "figures": figures}


class _Bench:
    """Updates and publishes, one after the other."""

    def __init__(self, generator: RolloutPool[RayMember], learner: RayLearner, group: ScoredGroup) -> None:
        self._generator, self._learner, self._group = generator, learner, group
        self._version = 0

    async def quiet(self, rounds: _Rounds, load: _Load, num_groups: int) -> None:
        """Undisturbed generation until a step's groups have ended: no more versions are in use than in a run."""
        began = time.monotonic()
        for _ in range(num_groups):
            await load.finished.acquire()
        rounds.quiet += await _steps(self._generator, began, time.monotonic())

    async def publish(self, rounds: _Rounds) -> None:
        """One update, and how long it takes from its end until it is served and proven."""
        fresh = [
            dataclasses.replace(m, completion=dataclasses.replace(m.completion, adapter_version=self._version))
            for m in self._group.members
        ]
        await self._learner.update([dataclasses.replace(self._group, members=tuple(fresh))])
        self._version += 1
        began = time.monotonic()
        adapter = await self._learner.export_adapter()
        exported = time.monotonic()

        async def probed() -> float:
            await adapter.probe()
            return time.monotonic()

        learners_part = asyncio.create_task(probed())
        reports = await self._generator.publish(adapter)
        ended = time.monotonic()
        rounds.export_ms.append(1e3 * (exported - began))
        rounds.training_probe_ms.append(1e3 * (await learners_part - exported))
        rounds.publish_ms.append(1e3 * (ended - began))
        rounds.reports += reports
        rounds.published += await _steps(self._generator, began, ended + 0.1)


async def _small_group(
    generator: RolloutPool[RayMember], source: PromptSource, sampling: SamplingParams
) -> ScoredGroup:
    """Two completions with rewards that differ, so that every update moves the adapter."""
    prompt_tokens, completion_tokens = _LEARNED_TOKENS
    prompt = source.next().prompt
    small = dataclasses.replace(sampling, num_generations=2, max_completion_length=completion_tokens)
    completions = await generator.generate(prompt, small)
    return ScoredGroup(
        prompt_id=prompt.prompt_id,
        prompt_token_ids=prompt.token_ids[-prompt_tokens:],
        members=tuple(
            ScoredCompletion(completion=completion, rewards=(float(i),), total=float(i))
            for i, completion in enumerate(completions)
        ),
    )


class _Load:
    """Keeps a number of groups under way until it is stopped."""

    def __init__(self, generator: RolloutPool[RayMember], source: PromptSource, sampling: SamplingParams) -> None:
        self._generator, self._source, self._sampling = generator, source, sampling
        self._tasks: list[asyncio.Task[None]] = []
        self.finished = asyncio.Semaphore(0)
        """Released by every group that ends."""
        self.num_requests = 0
        self.num_failed = 0

    def start(self, num_groups: int) -> None:
        self._tasks = [asyncio.create_task(self._keep_one()) for _ in range(num_groups)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_one(self) -> None:
        while True:
            built = self._source.next()
            self.num_requests += self._sampling.num_generations
            try:
                await self._generator.generate(built.prompt, self._sampling)
            except Exception:
                self.num_failed += self._sampling.num_generations  # the figure this benchmark is about
            self.finished.release()


async def _steps(generator: RolloutPool[RayMember], began: float, ended: float) -> list[EngineStep]:
    """Engine steps of all workers in a stretch of time. Workers on this host share its monotonic clock."""
    steps = await gather_or_cancel(
        member.actor.call(RolloutActor.recent_steps, timeout_s=30.0)() for member in generator.members
    )
    return [step for step in itertools.chain.from_iterable(steps) if began <= step.at <= ended]


def _figures(rounds: _Rounds) -> dict[str, float]:
    reports = rounds.reports
    writers = [report for report in reports if report.write_ms > 0]
    figures = {
        "publish_ms": statistics.median(rounds.publish_ms),
        "publish_ms_max": max(rounds.publish_ms),
        "export_ms": statistics.median(rounds.export_ms),
        "training_probe_ms": statistics.median(rounds.training_probe_ms),
        "write_ms": statistics.median(report.write_ms for report in writers),
        "load_ms": statistics.median(report.load_ms for report in reports),
        "probe_ms": statistics.median(report.probe_ms for report in reports),
        "probe_difference_max": max(report.probe_difference or 0.0 for report in reports),
        "adapter_bytes": reports[-1].version.num_bytes,
        "bytes_per_node": sum(report.version.num_bytes for report in writers) / len(rounds.publish_ms),
    }
    return figures | _gaps(rounds.quiet, rounds.published)


def _gaps(quiet: Sequence[EngineStep], published: Sequence[EngineStep]) -> dict[str, float]:
    """Nothing where nothing was generated."""
    quiet_gaps = [gap for step in quiet for gap in step.token_gaps_s]
    gaps = [gap for step in published for gap in step.token_gaps_s]
    if not quiet_gaps:
        return {}
    median_step_s = statistics.median(quiet_gaps)
    limit = max(quiet_gaps) + median_step_s
    return {
        "delayed_requests": sum(gap > limit for gap in gaps),
        "engine_step_ms": 1e3 * median_step_s,
        "longest_gap_quiet_ms": 1e3 * max(quiet_gaps),
        "longest_gap_publish_ms": 1e3 * max(gaps, default=0.0),
    }


def _copy_ms(num_bytes: int, folder: Path) -> float:
    """Median time to write the same number of bytes to the adapters' folder and read them back, milliseconds."""
    content = os.urandom(num_bytes)
    times = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=owned_prefix("bench")) as name:
        for index in range(NUM_UPDATES):
            path = Path(name) / str(index)
            began = time.perf_counter()
            path.write_bytes(content)
            path.read_bytes()
            times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def _settings(config: RunConfig, placement: Placement) -> dict[str, Any]:
    return {
        "model": config.model.name,
        "placement": placement.mode,
        "num_workers": len(placement.rollout),
        "num_ranks": len(placement.learner),
        "zero_stage": config.learner.zero_stage,
        "lora_r": config.learner.lora.r,
        "sequences_under_way": config.prompts_per_step * config.rollout.num_generations * len(placement.rollout),
        "updates": NUM_UPDATES,
    }
