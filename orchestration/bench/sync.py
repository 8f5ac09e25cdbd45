"""How long an update takes to be served by every worker, and what that costs the requests under way.

The real thing: rollout workers and a learner as Ray actors, generation running all the time, and after each update the
adapter exported, sent, loaded, proven by its probe, and made current.

A token is *late* when its gap to the token before, during a publish, exceeds the longest gap seen while nothing was
published or learned, in the same run, by more than one median engine step; `delayed_requests` counts them, so a request
that publishing cost more than one engine step counts at least once.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from learner.types import ScoredCompletion, ScoredGroup
from orchestration.bench.machine import machine_line
from orchestration.cluster.actors import RolloutActor
from orchestration.cluster.cluster import Cluster
from orchestration.cluster.generator import RayMember
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
"""Publishes measured; one more goes first and is not counted."""
QUIET_S = 8.0
"""Undisturbed generation before each update, seconds."""


def run(overrides: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Measure publishing while generation runs.

    Args:
        overrides: A recipe, if one is named first, and settings, as for `rlvr train`.
        progress: Told what is being done.

    Returns:
        `machine`, `settings` and `figures`.

    Raises:
        RlvrError: The machine or a setting does not allow it.
        RolloutError: An engine failed.
        LearnerError: A learner rank failed.
    """
    words = list(overrides)
    recipe = words.pop(0) if words and "=" not in words[0] else "arithmetic"
    # Requests go on while versions change, so what is learned from may be one version old.
    config = load_config(recipe, ["dashboard=false", "max_staleness=1", *words])
    doctor.require_machine(config)
    return asyncio.run(_measure(config, progress))


async def _measure(config: RunConfig, progress: Progress) -> dict[str, Any]:
    begin = counted(progress, 3 + NUM_UPDATES)
    begin(f"preparing the model {config.model.name} and its prompts")
    problems = config.data.load()
    model_path = resolve_model(config.model.name, config.model.revision, progress=progress)
    builder = make_prompt_builder(config, problems, model_path)
    source = PromptSource(problems.train, builder.build, config.seed)
    async with AsyncExitStack() as stack:
        begin("starting Ray, the vLLM engines and the learner ranks")
        cluster = Cluster(config, run_id=f"bench-sync-{os.getpid()}")
        stack.push_async_callback(cluster.shutdown)
        placement = cluster.connect()
        generator, learner = await cluster.start_both(cluster.start_rollout(), cluster.start_learner())
        load = _Load(generator, source, training_sampling(config, builder))
        stack.push_async_callback(load.stop)
        load.start(config.prompts_per_step * len(placement.rollout))
        quiet: list[EngineStep] = []
        published: list[EngineStep] = []
        publish_ms: list[float] = []
        reports: list[PublishReport] = []
        for number in range(NUM_UPDATES + 1):
            begin(f"publishing, update {number} of {NUM_UPDATES}" if number else "warming up")
            began = time.monotonic()
            await asyncio.sleep(QUIET_S)
            quiet += await _steps(generator, began, time.monotonic())
            await learner.update(await load.groups(config.prompts_per_step, oldest_version=number - 1))
            began = time.monotonic()
            done = await generator.publish(await learner.export_adapter())
            ended = time.monotonic()
            if number:  # the first publish also opens files and warms caches
                published += await _steps(generator, began, ended + 0.1)
                publish_ms.append(1e3 * (ended - began))
                reports += done
        num_requests, failed = load.num_requests, load.num_failed
    return {
        "machine": machine_line(),
        "settings": _settings(config, placement),
        "figures": _figures(publish_ms, reports, quiet, published, config, num_requests, failed),
    }


class _Load:
    """Keeps a number of groups under way until it is stopped."""

    def __init__(self, generator: RolloutPool[RayMember], source: PromptSource, sampling: SamplingParams) -> None:
        self._generator, self._source, self._sampling = generator, source, sampling
        self._finished: asyncio.Queue[ScoredGroup] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self.num_requests = 0
        self.num_failed = 0

    def start(self, num_groups: int) -> None:
        self._tasks = [asyncio.create_task(self._keep_one()) for _ in range(num_groups)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def groups(self, count: int, *, oldest_version: int) -> list[ScoredGroup]:
        """Finished groups, each with rewards that differ, so that every update moves the adapter; none older."""
        groups: list[ScoredGroup] = []
        while len(groups) < count:
            group = await self._finished.get()
            if all(member.completion.adapter_version >= oldest_version for member in group.members):
                groups.append(group)
        return groups

    async def _keep_one(self) -> None:
        while True:
            built = self._source.next()
            self.num_requests += self._sampling.num_generations
            try:
                completions = await self._generator.generate(built.prompt, self._sampling)
            except Exception:
                self.num_failed += self._sampling.num_generations  # the figure this benchmark is about
                continue
            members = tuple(
                ScoredCompletion(completion=completion, rewards=(float(i % 2),), total=float(i % 2))
                for i, completion in enumerate(completions)
            )
            self._finished.put_nowait(
                ScoredGroup(prompt_id=built.prompt.prompt_id, prompt_token_ids=built.prompt.token_ids, members=members)
            )


async def _steps(generator: RolloutPool[RayMember], began: float, ended: float) -> list[EngineStep]:
    """Engine steps of all workers in a stretch of time. Workers on this host share its monotonic clock."""
    steps = await gather_or_cancel(
        member.actor.call(RolloutActor.recent_steps, timeout_s=30.0)() for member in generator.members
    )
    return [step for step in itertools.chain.from_iterable(steps) if began <= step.at <= ended]


def _figures(
    publish_ms: Sequence[float],
    reports: Sequence[PublishReport],
    quiet: Sequence[EngineStep],
    published: Sequence[EngineStep],
    config: RunConfig,
    num_requests: int,
    failed: int,
) -> dict[str, float]:
    quiet_gaps = [gap for step in quiet for gap in step.token_gaps_s]
    gaps = [gap for step in published for gap in step.token_gaps_s]
    median_step_s = statistics.median(quiet_gaps)
    limit = max(quiet_gaps) + median_step_s
    adapter_bytes = reports[-1].version.num_bytes
    copy_ms = _copy_ms(adapter_bytes, Path(config.rollout.adapter_dir))
    median_ms = statistics.median(publish_ms)
    writers = [report for report in reports if report.write_ms > 0]
    return {
        "publish_ms": median_ms,
        "publish_ms_max": max(publish_ms),
        "copy_ms": copy_ms,
        "publish_over_copy": median_ms / copy_ms,
        "adapter_bytes": adapter_bytes,
        "bytes_per_node": sum(report.version.num_bytes for report in writers) / len(publish_ms),
        "failed_requests": failed,
        "delayed_requests": sum(gap > limit for gap in gaps),
        "requests": num_requests,
        "engine_step_ms": 1e3 * median_step_s,
        "longest_gap_quiet_ms": 1e3 * max(quiet_gaps),
        "longest_gap_publish_ms": 1e3 * max(gaps, default=0.0),
        "write_ms": statistics.median(report.write_ms for report in writers),
        "load_ms": statistics.median(report.load_ms for report in reports),
        "probe_ms": statistics.median(report.probe_ms for report in reports),
        "probe_difference_max": max(report.probe_difference or 0.0 for report in reports),
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
