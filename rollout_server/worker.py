"""A rollout worker: one engine, the adapter versions it serves, and the door to both.

Orchestration hosts `RolloutWorker` as an asynchronous actor: `generate` and `publish` run at the same time. What
waits for what:

- a group of completions takes the current version when it begins and keeps it to its end;
- publishing loads the new version beside the old ones and never pauses generation; it waits only if
  `max_adapter_versions` are in use, until the last request of one of them has ended;
- an old version is dropped when its last request has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from rollout_server.adapters import AdapterStore, AdapterTable, PlacedAdapter
from rollout_server.config import RolloutConfig
from rollout_server.engine import Device, EngineLoad, VllmEngine
from rollout_server.errors import RolloutError, RolloutTimeoutError
from rollout_server.probing import check_agreement, check_not_stale, looks_stale
from rollout_server.types import (
    AdapterPayload,
    AdapterVersion,
    Completion,
    EngineStep,
    Prompt,
    PublishReport,
    SamplingParams,
    WorkerStats,
)

logger = logging.getLogger(__name__)

MetricsSink = Callable[[dict[str, float]], None]

METRICS_PERIOD_S = 1.0
_CLEAN_UP_TIMEOUT_S = 10.0


class Engine(Protocol):
    """What a worker needs of an inference engine; `VllmEngine` is one."""

    async def start(self) -> None: ...

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, lora: AdapterVersion | None
    ) -> list[Completion]: ...

    async def prompt_logprobs(self, token_ids: Sequence[int], lora: AdapterVersion | None) -> list[float]: ...

    async def add_lora(self, version: AdapterVersion) -> None: ...

    async def remove_lora(self, version: AdapterVersion) -> None: ...

    def load(self) -> EngineLoad: ...

    def recent_steps(self) -> Sequence[EngineStep]: ...

    async def shutdown(self) -> None: ...


class RolloutWorker:
    """Generates groups of completions on the newest adapter version it was given.

    Args:
        name: Names the worker in reports, errors and metrics.
        model_path: Folder of the base model and its tokenizer.
        config: Engine, limits and where adapters lie.
        device: "cpu" or "cuda".
        seed: Of the engine's sampler.
        run_id: Names the run's folder of adapters.
        metrics_sink: Called about once a second, on the event loop, with `rollout_tokens_per_s`, `running_requests`,
            `waiting_requests` and `adapter_version`.
        engine: Stands in for vLLM in tests.
    """

    def __init__(
        self,
        name: str,
        model_path: str,
        config: RolloutConfig,
        device: Device,
        seed: int,
        run_id: str,
        metrics_sink: MetricsSink,
        *,
        engine: Engine | None = None,
    ) -> None:
        self._name = name
        self._config = config
        self._run_id = run_id
        self._metrics_sink = metrics_sink
        self._engine: Engine = engine or VllmEngine(model_path=model_path, config=config, device=device, seed=seed)
        self._store: AdapterStore | None = None
        self._table = AdapterTable()
        self._publishing = asyncio.Lock()
        self._request_ended = asyncio.Event()
        self._dropping: set[asyncio.Task[None]] = set()
        self._metrics_task: asyncio.Task[None] | None = None
        self._busy = _BusyClock()

    async def start(self) -> None:
        """Open the adapter folder and start the engine.

        Raises:
            EngineStartError: The engine does not come up.
        """
        self._store = AdapterStore(self._config.adapter_dir, self._run_id)
        await self._engine.start()
        self._metrics_task = asyncio.create_task(self._push_metrics())

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> list[Completion]:
        """Draw a group of completions, all of them on the version that is current now.

        Raises:
            ValueError: The prompt does not fit the context.
            RolloutTimeoutError: The group took longer than `generate_timeout_s`.
            EngineDeadError: The engine died.
        """
        number = self._table.acquire()
        self._busy.begin()
        try:
            async with asyncio.timeout(self._config.generate_timeout_s):
                return await self._engine.generate(prompt, sampling, self._table.version(number))
        except TimeoutError:
            load = self._engine.load()
            raise RolloutTimeoutError(
                f"worker {self._name} did not finish {sampling.num_generations} completions of prompt "
                f"{prompt.prompt_id!r} within {self._config.generate_timeout_s:g} s ({load.running} sequences running, "
                f"{load.waiting} waiting); raise rollout.generate_timeout_s or send it less at once"
            ) from None
        finally:
            self._busy.end()
            self._table.release(number)
            self._request_ended.set()
            self._drop_later()

    async def publish(self, payload: AdapterPayload) -> PublishReport:
        """Load a version, prove by its probe that it is served, and give it to the requests that follow.

        Publishing the current version again proves it again. If anything goes wrong the current version stays.

        Raises:
            ValueError: The version is older than the current one.
            AdapterMismatchError, StaleAdapterError: The probe failed.
            AdapterCorruptError: The files on this node are not those of the payload.
            RolloutTimeoutError: It took longer than `publish_timeout_s`.
        """
        try:
            async with asyncio.timeout(self._config.publish_timeout_s), self._publishing:
                return await self._publish(payload)
        except TimeoutError:
            waiting_for = ", ".join(f"v{n}: {self._table.num_requests(n)}" for n in self._table.live) or "none"
            raise RolloutTimeoutError(
                f"worker {self._name} did not publish adapter version {payload.version} within "
                f"{self._config.publish_timeout_s:g} s; requests under way for each live version: {waiting_for}. It "
                f"keeps at most {self._config.max_adapter_versions} versions (rollout.max_adapter_versions)"
            ) from None

    async def stats(self) -> WorkerStats:
        """Counters since the start."""
        load = self._engine.load()
        return WorkerStats(
            worker=self._name,
            adapter_version=self._table.current,
            running_requests=load.running,
            waiting_requests=load.waiting,
            generated_tokens=load.generated_tokens,
            generate_busy_s=self._busy.total_s(),
        )

    async def recent_steps(self) -> Sequence[EngineStep]:
        """The engine's last steps, oldest first: what a publish costs the requests under way can be read off them."""
        return self._engine.recent_steps()

    async def shutdown(self) -> None:
        """Stop the engine and remove what this worker has on the node."""
        if self._metrics_task is not None:
            self._metrics_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._metrics_task
            self._metrics_task = None
        await asyncio.gather(*self._dropping, return_exceptions=True)
        await self._engine.shutdown()
        if self._store is not None:
            self._store.close()
            self._store = None

    async def _publish(self, payload: AdapterPayload) -> PublishReport:
        previous = self._table.current
        if payload.version < max(previous, 1):
            raise ValueError(
                f"worker {self._name} already serves adapter version {previous} and cannot go to {payload.version}"
            )
        if payload.version == previous:
            return await self._publish_again(payload)
        await self._wait_for_place()
        placed = await asyncio.to_thread(self._running_store().place, payload)
        async with self._undone_on_failure(placed.version):
            started = time.perf_counter()
            await self._engine.add_lora(placed.version)
            load_ms = (time.perf_counter() - started) * 1e3
            started = time.perf_counter()
            difference = await self._probe(payload, placed.version, previous)
            probe_ms = (time.perf_counter() - started) * 1e3
        self._table.make_current(payload.version)
        self._drop_later()
        return self._report(placed, load_ms, probe_ms, difference)

    async def _publish_again(self, payload: AdapterPayload) -> PublishReport:
        version = self._table.version(payload.version)
        assert version is not None
        if version.checksum != payload.checksum():
            raise ValueError(
                f"worker {self._name} already serves another adapter as version {payload.version}: "
                f"checksum {version.checksum[:16]}, not {payload.checksum()[:16]}"
            )
        started = time.perf_counter()
        difference = None
        if payload.probe is not None:
            served = await self._engine.prompt_logprobs(payload.probe.token_ids, version)
            difference = check_agreement(served, payload.probe, worker=self._name, version=version.number)
        probe_ms = (time.perf_counter() - started) * 1e3
        return self._report(PlacedAdapter(version=version, write_ms=0.0), 0.0, probe_ms, difference)

    def _report(
        self, placed: PlacedAdapter, load_ms: float, probe_ms: float, difference: float | None
    ) -> PublishReport:
        return PublishReport(
            worker=self._name,
            version=placed.version,
            write_ms=placed.write_ms,
            load_ms=load_ms,
            probe_ms=probe_ms,
            probe_difference=difference,
        )

    async def _probe(self, payload: AdapterPayload, version: AdapterVersion, previous: int) -> float | None:
        probe = payload.probe
        if probe is None:
            return None
        served = await self._engine.prompt_logprobs(probe.token_ids, version)
        difference = check_agreement(served, probe, worker=self._name, version=version.number)
        if looks_stale(served, probe):
            served_before = await self._engine.prompt_logprobs(probe.token_ids, self._table.version(previous))
            check_not_stale(
                served,
                served_before,
                probe,
                worker=self._name,
                version=version.number,
                previous_version=previous,
            )
        return difference

    async def _wait_for_place(self) -> None:
        """Until fewer than `max_adapter_versions` are live: a version goes when its last request has ended."""
        while True:
            self._request_ended.clear()
            await self._drop_idle()
            if len(self._table.live) < self._config.max_adapter_versions:
                return
            await self._request_ended.wait()

    @contextlib.asynccontextmanager
    async def _undone_on_failure(self, version: AdapterVersion) -> AsyncIterator[None]:
        """Take a placed version into the table; out of everything again if the block fails."""
        self._table.add(version)
        try:
            yield
        except BaseException:
            with contextlib.suppress(RolloutError, TimeoutError):  # the first error is the one to report
                async with asyncio.timeout(_CLEAN_UP_TIMEOUT_S):
                    await self._drop(version)
            raise

    def _drop_later(self) -> None:
        """Drop idle versions without making anybody wait."""
        if not self._table.idle() or any(not task.done() for task in self._dropping):
            return
        task = asyncio.create_task(self._drop_idle_alone())
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    async def _drop_idle_alone(self) -> None:
        async with self._publishing:
            try:
                await self._drop_idle()
            except RolloutError as error:
                logger.warning("worker %s could not drop an adapter version: %s", self._name, error)

    async def _drop_idle(self) -> None:
        while idle := self._table.idle():
            await self._drop(idle[0])

    async def _drop(self, version: AdapterVersion) -> None:
        self._table.discard(version.number)
        await asyncio.to_thread(self._running_store().drop, version.number)
        await self._engine.remove_lora(version)

    def _running_store(self) -> AdapterStore:
        if self._store is None:
            raise RolloutError(f"worker {self._name} is not running: call start() first")
        return self._store

    async def _push_metrics(self) -> None:
        """Feed the sink until cancelled. A sink that fails is reported once and dropped: metrics never stop a run."""
        before = self._engine.load().generated_tokens
        then = time.monotonic()
        while True:
            await asyncio.sleep(METRICS_PERIOD_S)
            load, now = self._engine.load(), time.monotonic()
            values = {
                "rollout_tokens_per_s": (load.generated_tokens - before) / (now - then),
                "running_requests": float(load.running),
                "waiting_requests": float(load.waiting),
                "adapter_version": float(self._table.current),
            }
            before, then = load.generated_tokens, now
            try:
                self._metrics_sink(values)
            except Exception:
                logger.warning("worker %s: the metrics sink failed and is not called again", self._name, exc_info=True)
                return


class _BusyClock:
    """Seconds in which at least one request was under way."""

    def __init__(self) -> None:
        self._under_way = 0
        self._since = 0.0
        self._total_s = 0.0

    def begin(self) -> None:
        if self._under_way == 0:
            self._since = time.monotonic()
        self._under_way += 1

    def end(self) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self._total_s += time.monotonic() - self._since

    def total_s(self) -> float:
        return self._total_s + (time.monotonic() - self._since if self._under_way else 0.0)
