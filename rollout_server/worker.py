"""A rollout worker: one engine, the adapter versions it serves, and the door to both.

Orchestration hosts `RolloutWorker` as an asynchronous actor: `generate` and `publish` run at the same time. What
waits for what:

- a completion waits until the engine has a place for it, first come first served; it takes the version that is current
  then and keeps it to its end, so that a long group may go on with a new version, between completions;
- what has to begin together (`Turn`) goes to the engine at once, on one version;
- publishing loads the new version beside the old ones and never pauses generation; it waits only if
  `max_adapter_versions` are in use, until the last request of one of them has ended;
- an old version is dropped when its last request has ended;
- a version with whole tensors (peft's `modules_to_save`) cannot be served beside another: publishing it lets no new
  group begin, waits until all have ended, replaces the tensors, and then lets groups begin again, on that version.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Protocol

from rollout_server.config import Device, RolloutConfig
from rollout_server.counters import EngineLoad, MetricsSink, push_metrics
from rollout_server.engine import VllmEngine
from rollout_server.errors import AdapterCorruptError, EngineSpoiledError, RolloutError, RolloutTimeoutError
from rollout_server.forking.leftovers import end_orphans, remove_leftovers
from rollout_server.hosted_engine import HostedEngine
from rollout_server.hosted_engine import start_fork_server as start_fork_server  # part of this door
from rollout_server.publishing.adapters import AdapterStore, AdapterTable, PlacedAdapter
from rollout_server.publishing.departures import Departures
from rollout_server.publishing.full_tensors import as_served, full_tensor_names
from rollout_server.publishing.layout import Layout, adapter_layout
from rollout_server.publishing.probing import Gap
from rollout_server.publishing.proving import ProbedEngine, Prover
from rollout_server.repeatable.turns import whole_group
from rollout_server.types import (
    AdapterPayload,
    AdapterProbe,
    AdapterVersion,
    Completion,
    EngineStep,
    Prompt,
    PublishReport,
    SamplingParams,
)

_CLEAN_UP_TIMEOUT_S = 10.0


class Engine(ProbedEngine, Protocol):
    """What a worker needs of an inference engine; `VllmEngine` is one."""

    async def start(self) -> None: ...

    async def generate(
        self, prompt: Prompt, sampling: SamplingParams, lora: AdapterVersion | None
    ) -> list[Completion]: ...

    async def remove_lora(self, version: AdapterVersion) -> None: ...

    async def check_full_tensors(self, version: AdapterVersion) -> None: ...

    async def load_full_tensors(self, version: AdapterVersion) -> None: ...

    async def check(self) -> None: ...

    async def drop_prefix_cache(self) -> None: ...

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
            `waiting_requests`, `adapter_version` and the engine's own statistics.
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
        # With CUDA, how processes are started is vLLM's own choice.
        engine_class = HostedEngine if device == "cpu" else VllmEngine
        self._engine: Engine = engine or engine_class(model_path=model_path, config=config, device=device, seed=seed)
        self._store: AdapterStore | None = None
        self._table = AdapterTable()
        self._publishing = asyncio.Lock()
        self._admitting = asyncio.Event()
        self._admitting.set()
        self._places = asyncio.Semaphore(config.max_num_seqs)
        self._replaced_tensors: frozenset[str] = frozenset()
        self._layout: Layout | None = None
        self._prover = Prover(self._engine, name)
        self._spoiled_by: int | None = None
        self._departures = Departures(self._table, self._drop, publishing=self._publishing, worker=name)
        self._metrics_task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open the adapter folder and start the engine.

        Raises:
            EngineStartError: The engine does not come up.
        """
        await asyncio.to_thread(_clear_node)
        self._store = AdapterStore(self._config.adapter_dir, self._run_id)
        await self._engine.start()
        self._metrics_task = asyncio.create_task(
            push_metrics(self._metrics_sink, self._engine.load, lambda: self._table.current, worker=self._name)
        )

    async def generate(self, prompt: Prompt, sampling: SamplingParams) -> list[Completion]:
        """Draw a group of completions. Each is on the version that is current when it begins; groups with a turn are on
        one version, that of now.

        Raises:
            ValueError: The prompt does not fit the context.
            RolloutTimeoutError: A completion took longer than `generate_timeout_s` once it had begun.
            EngineDeadError: The engine died.
            EngineSpoiledError: A publish of whole tensors failed on its way, and none has succeeded since.
        """
        if prompt.turn is not None:
            num_sequences = prompt.turn.size * sampling.num_generations
            return await self._generate_in_time(prompt, sampling, self._config.generation_limit_s(num_sequences))
        alone = replace(sampling, num_generations=1)
        return await whole_group(
            self._draw(prompt if prompt.seed is None else replace(prompt, seed=prompt.seed + index), alone)
            for index in range(sampling.num_generations)
        )

    async def _draw(self, prompt: Prompt, sampling: SamplingParams) -> Completion:
        """One completion, as soon as there is a place for it."""
        async with self._places:
            (completion,) = await self._generate_in_time(prompt, sampling, self._config.generate_timeout_s)
        return completion

    async def _generate_in_time(self, prompt: Prompt, sampling: SamplingParams, limit_s: float) -> list[Completion]:
        try:
            async with asyncio.timeout(limit_s):
                await self._admitting.wait()
                return await self._generate(prompt, sampling)
        except TimeoutError:
            load = self._engine.load()
            raise RolloutTimeoutError(
                f"worker {self._name} did not finish {sampling.num_generations} completions of prompt "
                f"{prompt.prompt_id!r} within {limit_s:g} s of their beginning ({load.running} sequences running, "
                f"{load.waiting} waiting); raise rollout.generate_timeout_s or lower rollout.max_num_seqs"
            ) from None

    async def _generate(self, prompt: Prompt, sampling: SamplingParams) -> list[Completion]:
        if self._spoiled_by is not None:
            raise EngineSpoiledError(
                f"worker {self._name} holds a part of adapter version {self._spoiled_by}, whose publish failed, and "
                f"cannot go back to version {self._table.current}: publish that version again, or start the run again"
            )
        number = self._table.acquire()
        try:
            return await self._engine.generate(prompt, sampling, self._table.version(number))
        finally:
            self._departures.release(number)

    async def publish(
        self, payload: AdapterPayload, probe: AdapterProbe | Awaitable[AdapterProbe] | None = None
    ) -> PublishReport:
        """Load a version, prove by its probe that it is served, and give it to the requests that follow.

        Publishing the current version again proves it again. If anything goes wrong the current version stays; but
        once whole tensors have begun to be replaced there is no way back, and the worker generates no more until a
        version with all of them is published.

        Args:
            payload: The version's files, and the tokens to prove it by.
            probe: What the learner says of these tokens. It is awaited last: the learner may still compute it while
                the version is loaded here. None: nothing is proven.

        Raises:
            ValueError: The version is older than the current one, or has other tensors than those before.
            FullTensorsError: Its whole tensors do not fit the model.
            AdapterMismatchError, StaleAdapterError: The probe failed.
            AdapterCorruptError: The payload is damaged, or the files on this node are not those of the payload.
            RolloutTimeoutError: It took longer than `publish_timeout_s`.
            Exception: What waiting for the probe raises.
        """
        try:
            async with asyncio.timeout(self._config.publish_timeout_s), self._publishing:
                return await self._publish(await asyncio.to_thread(as_served, payload), probe)
        except TimeoutError:
            waiting_for = ", ".join(f"v{n}: {self._table.num_requests(n)}" for n in (0, *self._table.live))
            raise RolloutTimeoutError(
                f"worker {self._name} did not publish adapter version {payload.version} within "
                f"{self._config.publish_timeout_s:g} s; requests under way for each live version: {waiting_for}. It "
                f"keeps at most {self._config.max_adapter_versions} versions (rollout.max_adapter_versions), and one "
                f"with modules_to_save waits for all requests; raise rollout.publish_timeout_s if they take long"
            ) from None

    async def heartbeat(self) -> int:
        """A number that grows with every step of the engine. While requests are under way and it does not, it hangs.

        Raises:
            EngineDeadError: The engine has died.
        """
        await self._engine.check()
        return self._engine.load().steps

    async def drop_prefix_cache(self) -> None:
        """Forget computed prefixes, with no request under way: what follows does not depend on what was asked before,
        to the last bit."""
        await self._engine.drop_prefix_cache()

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
        await self._departures.settled()
        await self._engine.shutdown()
        await asyncio.to_thread(_clear_node)
        if self._store is not None:
            self._store.close()
            self._store = None

    async def _publish(
        self, payload: AdapterPayload, probe: AdapterProbe | Awaitable[AdapterProbe] | None
    ) -> PublishReport:
        previous = self._table.current
        if payload.version < max(previous, 1):
            raise ValueError(
                f"worker {self._name} already serves adapter version {previous} and cannot go to {payload.version}"
            )
        if payload.version == previous:
            return await self._publish_again(payload, probe)
        names = full_tensor_names(payload)
        if not names >= self._replaced_tensors:
            raise ValueError(
                f"adapter version {payload.version} lacks {sorted(self._replaced_tensors - names)}, which an earlier "
                f"version replaced in worker {self._name}: all versions of a run must have the same modules_to_save"
            )
        layout = adapter_layout(payload)
        if self._layout not in (None, layout):
            raise ValueError(
                f"adapter version {payload.version} has other tensors or another configuration than those worker "
                f"{self._name} has served: all versions of a run have the same"
            )
        await self._departures.place(self._config.max_adapter_versions)
        store = self._running_store()
        placed = await asyncio.to_thread(store.place, payload)
        async with self._undone_on_failure(placed.version), self._drained() if names else contextlib.nullcontext():
            started = time.perf_counter()
            asked = payload.probe_token_ids if probe is not None else ()
            async with _beside(asyncio.to_thread(store.check, payload) if placed.write_ms else None):
                loaded = await self._prover.load(
                    placed.version,
                    asked,
                    self._table.version(previous),
                    served_before=await self._replace_tensors(asked, placed.version, names) if names else None,
                    alike=self._layout is not None,
                )
            self._layout = layout
            found = None if probe is None else await self._prover.prove(loaded, await _ready(probe))
            probe_ms = (time.perf_counter() - started) * 1e3 - loaded.load_ms
            self._table.make_current(payload.version)
            self._spoiled_by = None
        self._departures.drop_later()
        return self._report(placed, loaded.load_ms, probe_ms, found)

    @contextlib.asynccontextmanager
    async def _drained(self) -> AsyncIterator[None]:
        """No request is under way inside, and none begins."""
        self._admitting.clear()
        try:
            await self._departures.quiet()
            yield
        finally:
            self._admitting.set()

    async def _replace_tensors(
        self, asked: Sequence[int], version: AdapterVersion, names: frozenset[str]
    ) -> list[float] | None:
        """Put the version's whole tensors into the drained engine. Returns what the previous version says of the
        probe: afterwards nobody can be asked."""
        served_before = None
        if asked:
            (served_before,) = await self._engine.prompt_logprobs(asked, [self._table.version(self._table.current)])
        await self._engine.check_full_tensors(version)
        await self._engine.drop_prefix_cache()
        self._spoiled_by = version.number
        self._replaced_tensors = names
        await self._engine.load_full_tensors(version)
        return served_before

    async def _publish_again(
        self, payload: AdapterPayload, probe: AdapterProbe | Awaitable[AdapterProbe] | None
    ) -> PublishReport:
        version = self._table.version(payload.version)
        assert version is not None
        try:
            await asyncio.to_thread(self._running_store().check, payload)
        except AdapterCorruptError as error:
            raise ValueError(
                f"worker {self._name} already serves another adapter as version {payload.version}: {error}"
            ) from None
        started = time.perf_counter()
        found = None
        if probe is not None:
            found = await self._prover.prove_again(version, payload.probe_token_ids, await _ready(probe))
        probe_ms = (time.perf_counter() - started) * 1e3
        return self._report(PlacedAdapter(version=version, write_ms=0.0), 0.0, probe_ms, found)

    def _report(self, placed: PlacedAdapter, load_ms: float, probe_ms: float, found: Gap | None) -> PublishReport:
        return PublishReport(
            worker=self._name,
            version=placed.version,
            write_ms=placed.write_ms,
            load_ms=load_ms,
            probe_ms=probe_ms,
            probe_difference=None if found is None else found.largest,
        )

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

    async def _drop(self, version: AdapterVersion) -> None:
        self._table.discard(version.number)
        await asyncio.to_thread(self._running_store().drop, version.number)
        await self._engine.remove_lora(version)

    def _running_store(self) -> AdapterStore:
        if self._store is None:
            raise RolloutError(f"worker {self._name} is not running: call start() first")
        return self._store


def _clear_node() -> None:
    """End and remove what killed workers have left here."""
    end_orphans()
    remove_leftovers()


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None] | None) -> AsyncIterator[None]:
    """What goes on meanwhile, if anything, and has ended well when the block has."""
    task = None if work is None else asyncio.create_task(work)
    try:
        yield
    finally:
        if task is not None:
            await task


async def _ready(probe: AdapterProbe | Awaitable[AdapterProbe]) -> AdapterProbe:
    return probe if isinstance(probe, AdapterProbe) else await probe
