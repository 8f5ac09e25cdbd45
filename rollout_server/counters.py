"""What an engine is doing, and what its steps added up to."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rollout_server.types import EngineStep

logger = logging.getLogger(__name__)

MetricsSink = Callable[[dict[str, float]], None]

METRICS_PERIOD_S = 1.0
_REMEMBERED_STEPS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoad:
    """What an engine is doing, as its scheduler last said."""

    running: int
    """Sequences in the batch."""
    waiting: int
    """Sequences in the queue."""
    generated_tokens: int
    """Completion tokens since the start."""
    steps: int = 0
    """Steps since the start: what grows as long as the engine gets on with its work."""
    kv_cache_usage: float = 0.0
    """Share of the cache's blocks that are in use."""
    prompt_tokens: int = 0
    """Tokens of prompts that were looked up in the prefix cache, since the start."""
    cached_prompt_tokens: int = 0
    """Of these, tokens that it had."""
    preemptions: int = 0
    """Sequences that had to give up their place, since the start."""


@dataclass(slots=True)
class Counters:
    """What an engine's steps added up to."""

    load: EngineLoad = EngineLoad(running=0, waiting=0, generated_tokens=0)
    steps: deque[EngineStep] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_STEPS))
    tell: Callable[[tuple[EngineLoad, EngineStep | None]], None] | None = None
    """Told of every step, for counters elsewhere that `follow`."""

    def record(self, scheduler_stats: Any, iteration_stats: Any) -> None:
        """Take over what vLLM reports once per engine step; either part may be None."""
        load, step = replace(self.load, steps=self.load.steps + 1), None
        if scheduler_stats is not None:
            prefixes = scheduler_stats.prefix_cache_stats
            load = replace(
                load,
                running=scheduler_stats.num_running_reqs,
                waiting=scheduler_stats.num_waiting_reqs,
                kv_cache_usage=scheduler_stats.kv_cache_usage,
                prompt_tokens=load.prompt_tokens + prefixes.queries,
                cached_prompt_tokens=load.cached_prompt_tokens + prefixes.hits,
            )
        if iteration_stats is not None:
            load = replace(
                load,
                generated_tokens=load.generated_tokens + iteration_stats.num_generation_tokens,
                preemptions=load.preemptions + iteration_stats.num_preempted_reqs,
            )
            gaps_s = tuple(iteration_stats.inter_token_latencies_iter)
            step = EngineStep(at=time.monotonic(), token_gaps_s=gaps_s)
        self.follow((load, step))
        if self.tell is not None:
            self.tell((load, step))

    def follow(self, news: tuple[EngineLoad, EngineStep | None]) -> None:
        """Take over what other counters tell."""
        self.load = news[0]
        if news[1] is not None:
            self.steps.append(news[1])


async def push_metrics(
    sink: MetricsSink, load_now: Callable[[], EngineLoad], version: Callable[[], int], *, worker: str
) -> None:
    """Feed the sink until cancelled. A sink that fails is reported once and dropped: metrics never stop a run.

    Args:
        sink: Gets gauges by name every `METRICS_PERIOD_S`; rates are those since the time before.
        load_now: Of the engine; its counters never go down.
        version: Of the adapter that new requests get.
        worker: Its name, for the one warning.
    """
    before, then = load_now().generated_tokens, time.monotonic()
    while True:
        await asyncio.sleep(METRICS_PERIOD_S)
        load, now = load_now(), time.monotonic()
        values = {
            "rollout_tokens_per_s": (load.generated_tokens - before) / (now - then),
            "running_requests": float(load.running),
            "waiting_requests": float(load.waiting),
            "adapter_version": float(version()),
            "generated_tokens_total": float(load.generated_tokens),
            "kv_cache_usage": load.kv_cache_usage,
            "prompt_tokens_total": float(load.prompt_tokens),
            "cached_prompt_tokens_total": float(load.cached_prompt_tokens),
            "preemptions_total": float(load.preemptions),
        }
        before, then = load.generated_tokens, now
        try:
            sink(values)
        except Exception:
            logger.warning("worker %s: the metrics sink failed and is not called again", worker, exc_info=True)
            return
