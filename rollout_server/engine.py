"""vLLM behind a small door. What depends on its version is here, and in `engine_settings`, `vllm_types` and
`vllm_extension`.

Written for vLLM 0.26 to 0.32. vLLM reads much of its configuration from the environment, some of it at import; so it
is imported inside functions, after `prepare_environment`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rollout_server.config import Device, RolloutConfig
from rollout_server.counters import Counters, EngineLoad
from rollout_server.engine_settings import engine_arguments, prepare_environment
from rollout_server.errors import (
    AdapterCorruptError,
    EngineDeadError,
    EngineStartError,
    FullTensorsError,
    GenerationError,
)
from rollout_server.forking.ends import describe_ends
from rollout_server.forking.leftovers import OWNER, mark, name_shared_memory, own_folder
from rollout_server.publishing.full_tensors import FULL_TENSORS_NAME
from rollout_server.repeatable.turns import Turns
from rollout_server.types import AdapterVersion, Completion, EngineStep, Prompt, SamplingParams, Turn
from rollout_server.vllm_types import (
    completion_from,
    is_cut_off,
    is_death,
    lora_request,
    stat_logger_factory,
    take_threads,
    vllm_probe_parameters,
    vllm_sampling_parameters,
)

logger = logging.getLogger(__name__)

_SHUTDOWN_TIMEOUT_S = 15.0
"""What vLLM's processes get to end by themselves before they are killed."""

_SOCKET_NAME = 36
"""Length of a socket's name of vLLM's: a UUID."""

_PREFIX_CACHE_POLL_S = 0.01

_PROBES_FIRST = -1
"""vLLM takes the lowest first; completions have 0."""

_EXTENSION = "rollout_server.vllm_extension.FullTensorsExtension"
"""By name, since only vLLM's processes need it, and its torch."""


@dataclass(slots=True)
class VllmEngine:
    """One `AsyncLLM` with LoRA and prefix caching on.

    Log-probabilities of sampled tokens are the processed ones: those of the distribution the token was drawn from,
    after temperature, top-k and top-p. vLLM treats the log-probabilities of prompt tokens apart: always temperature 1.
    """

    model_path: str
    config: RolloutConfig
    device: Device
    seed: int
    fork: bool = False
    """Have vLLM's processes forked instead of spawned: for a process without threads that has imported vLLM."""
    _llm: Any = None
    _counters: Counters = field(default_factory=Counters)
    _request_numbers: itertools.count[int] = field(default_factory=itertools.count)
    _processes: list[Any] = field(default_factory=list)
    _cores: Sequence[int] = ()
    _sockets: Path | None = None
    _turns: Turns = field(init=False)

    def __post_init__(self) -> None:
        self._turns = Turns(self._held)

    @property
    def _draws_by_seeds(self) -> bool:
        return self.device == "cpu" if self.config.own_seeds is None else self.config.own_seeds

    async def start(self) -> None:
        """Load the model and start vLLM's processes. Takes tens of seconds.

        Raises:
            EngineStartError: The model cannot be served, or the start took longer than `start_timeout_s`.
        """
        before = set(multiprocessing.active_children())
        try:
            async with asyncio.timeout(self.config.start_timeout_s):
                await asyncio.to_thread(self.start_here)
        except TimeoutError:
            for child in _new_children(before):
                child.kill()
            raise EngineStartError.timed_out(self.model_path, self.device, self.config.start_timeout_s) from None

    def start_here(self) -> None:
        """`start` in this thread, and without its time limit."""
        prepare_environment(self.config, self.device)
        before = set(multiprocessing.active_children())
        self._own_what_is_made()
        try:
            self._build()
        except Exception as error:
            raise EngineStartError(
                f"vLLM did not start on {self.model_path!r} ({self.device}): {type(error).__name__}: {error}"
            ) from error
        self._processes = _new_children(before)

    def _own_what_is_made(self) -> None:
        """Have vLLM's processes, shared memory and sockets say whose they are, in case this process is killed."""
        name_shared_memory()
        if self._sockets is None:
            self._sockets = own_folder("ipc", longest_name=_SOCKET_NAME)
        os.environ |= {OWNER: mark(), "VLLM_RPC_BASE_PATH": str(self._sockets)}

    def _build(self) -> None:
        """Sets `_llm`. Returned, it would stay in the thread's frame, which errors that vLLM's imports catch and keep
        hold on to: it would not be finalised before the interpreter goes down."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(
            **engine_arguments(self.model_path, self.config, self.device, self.seed),
            worker_extension_cls=_EXTENSION,
        )
        settings = arguments.create_engine_config()
        if self.fork:
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # on CPUs, making the settings has just set "spawn"
            self._cores = take_threads(settings)
        self._llm = AsyncLLM.from_vllm_config(
            settings, stat_loggers=[stat_logger_factory(self._counters)], disable_log_stats=True
        )

    async def generate(self, prompt: Prompt, sampling: SamplingParams, lora: AdapterVersion | None) -> list[Completion]:
        """Draw a group of `sampling.num_generations` completions of one prompt under one adapter (None: the base).

        The token that ended a completion is its last one. With `temperature=0` the log-probabilities are those at
        temperature 1.

        Raises:
            ValueError: The prompt leaves no room for a completion in the context.
            EngineDeadError: The engine died, now or before.
            GenerationError: vLLM gave up on a completion.
        """
        parameters = vllm_sampling_parameters(prompt, sampling, self.config.max_model_len)
        if self._draws_by_seeds:
            parameters.seed = prompt.seed
        output = await self._finish_request(prompt.token_ids, parameters, lora, turn=prompt.turn)
        version = 0 if lora is None else lora.number
        cache = {
            "num_cached_tokens": output.num_cached_tokens or 0,
            "cache_block": self._running().vllm_config.cache_config.block_size,
        }
        return [completion_from(prompt.prompt_id, piece, version, **cache) for piece in output.outputs]

    async def prompt_logprobs(
        self, token_ids: Sequence[int], versions: Sequence[AdapterVersion | None]
    ) -> list[list[float]]:
        """What the engine says of given tokens, computed afresh: a request for prompt log-probabilities never reads
        vLLM's prefix cache. They go before completions that wait for a place.

        Args:
            token_ids: Fewer than `max_model_len`, else ValueError.
            versions: Adapters to take them under, in one engine step where there is room; None: the base.

        Returns:
            Of each log p(token_ids[i+1] | token_ids[:i+1]) at temperature 1, natural log: one less than tokens.
        """
        if len(token_ids) >= self.config.max_model_len:
            raise ValueError(
                f"a probe of {len(token_ids)} tokens does not fit the context of {self.config.max_model_len} "
                "(rollout.max_model_len)"
            )
        parameters = vllm_probe_parameters()
        outputs = await asyncio.gather(
            *(self._finish_request(token_ids, parameters, lora, priority=_PROBES_FIRST) for lora in versions)
        )
        logprobs = [list(output.prompt_logprobs.logprobs) for output in outputs]
        assert all(len(row) == len(token_ids) - 1 for row in logprobs)  # the first token has none
        return logprobs

    async def add_lora(self, version: AdapterVersion) -> None:
        """Load an adapter beside those being served; no request is paused.

        Raises:
            AdapterCorruptError: vLLM does not take it.
        """
        async with self._naming_death():
            try:
                await self._running().add_lora(lora_request(version))
            except Exception as error:
                if self._running().errored or is_cut_off(error):
                    raise
                raise AdapterCorruptError(
                    f"vLLM does not load adapter version {version.number}: {' '.join(str(error).split())}"
                ) from error

    async def add_lora_and_probe(
        self,
        version: AdapterVersion,
        token_ids: Sequence[int],
        versions: Sequence[AdapterVersion | None],
        before: AdapterVersion | None,
    ) -> tuple[float, list[list[float]], bool]:
        """`add_lora`, `same_adapters` of it and the one before, and `prompt_logprobs` in the engine's very next step:
        vLLM takes calls and requests one after the other between two steps, and nobody waits for an answer in between,
        which would cost another step each. Should the adapter not load, the requests would have it loaded once more,
        and vLLM dies of it: only for adapters made like one that did load.

        Returns:
            How long loading took, milliseconds; the log-probabilities; whether the two are the same.
        """
        began = time.perf_counter()
        adding = asyncio.create_task(self.add_lora(version))
        await asyncio.sleep(0)  # now its call is on the way, ahead of the others
        looking = asyncio.create_task(self.same_adapters(version, before))
        asking = asyncio.create_task(self.prompt_logprobs(token_ids, versions))
        try:
            await adding
            load_ms = (time.perf_counter() - began) * 1e3
            return load_ms, await asking, await looking
        finally:
            asking.cancel()
            looking.cancel()

    async def same_adapters(self, first: AdapterVersion, second: AdapterVersion | None) -> bool:
        """Whether two loaded adapters are one and the same in the engine's memory; for None, whether the first changes
        nothing of the base.
        """
        numbers = first.number, None if second is None else second.number
        async with self._naming_death():
            return all(await self._running().collective_rpc("rlvr_same_adapters", args=numbers))

    async def remove_lora(self, version: AdapterVersion) -> None:
        """Forget an adapter that no request uses."""
        async with self._naming_death():
            await self._running().remove_lora(version.number)

    async def check_full_tensors(self, version: AdapterVersion) -> None:
        """Make sure that the adapter's whole tensors have their places in the model.

        Raises:
            FullTensorsError: They have not; nothing was changed.
        """
        await self._on_all_ranks("rlvr_check_full_tensors", version)

    async def load_full_tensors(self, version: AdapterVersion) -> None:
        """Replace the model's tensors by the adapter's. No request may be under way. What goes wrong here leaves the
        model in an unknown state."""
        await self._on_all_ranks("rlvr_load_full_tensors", version)

    async def keep_to_cores(self) -> None:
        """Have a forked worker stay on the cores that vLLM means for it: for one that is spawned, vLLM sees to that."""
        if self._cores:
            await self._running().collective_rpc("rlvr_keep_to_cores", args=(tuple(self._cores),))

    async def check(self) -> None:
        """Raises EngineDeadError when the engine has died, also where nobody waits for it."""
        async with self._naming_death():
            await self._running().check_health()

    async def drop_prefix_cache(self) -> None:
        """Forget the keys and values of finished requests; waits for requests that are still being ended."""
        async with self._naming_death():
            while not await self._running().reset_prefix_cache():  # noqa: ASYNC110  # vLLM tells nobody when
                await asyncio.sleep(_PREFIX_CACHE_POLL_S)

    def load(self) -> EngineLoad:
        """What the engine is doing now."""
        return self._counters.load

    def recent_steps(self) -> tuple[EngineStep, ...]:
        """The engine's last steps, oldest first; a bounded number of them."""
        return tuple(self._counters.steps)

    async def shutdown(self) -> None:
        """Stop vLLM's processes; harmless when there are none."""
        if self._llm is not None:
            await self._shutdown()
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._sockets = None

    async def _shutdown(self) -> None:
        llm, self._llm = self._llm, None
        if llm.output_handler is not None:
            # First the task that listens to the engine, or it reports the end we are bringing about as a crash.
            llm.output_handler.cancel()
            await asyncio.gather(llm.output_handler, return_exceptions=True)
        await asyncio.to_thread(llm.shutdown, _SHUTDOWN_TIMEOUT_S)
        # AsyncLLM sits in reference cycles and has a finaliser: it must run now, not in an interpreter half taken down.
        del llm
        gc.collect()

    def _running(self) -> Any:
        if self._llm is None:
            raise EngineDeadError(f"the vLLM engine of {self.model_path!r} is not running: call start() first")
        return self._llm

    async def _on_all_ranks(self, method: str, version: AdapterVersion) -> None:
        path = str(Path(version.path) / FULL_TENSORS_NAME)
        async with self._naming_death():
            problems = await self._running().collective_rpc(method, args=(path,))
        for problem in problems:
            if problem is not None:
                raise FullTensorsError(f"the tensors of adapter version {version.number} do not load: {problem}")

    async def _finish_request(
        self,
        token_ids: Sequence[int],
        parameters: Any,
        lora: AdapterVersion | None,
        *,
        turn: Turn | None = None,
        priority: int = 0,
    ) -> Any:
        from vllm.inputs import tokens_input

        request_id = f"{os.getpid()}-{next(self._request_numbers)}"
        arguments = {
            "prompt": tokens_input(list(token_ids)),
            "request_id": request_id,
            "lora_request": None if lora is None else lora_request(lora),
        }
        last = None
        async with self._naming_death():
            if turn is None:
                stream: AsyncIterator[Any] = self._running().generate(
                    sampling_params=parameters, priority=priority, **arguments
                )
            else:
                stream = self._stream_in_turn(turn, params=parameters, **arguments)
            async for output in stream:
                last = output
        if last is None or not last.finished:
            raise GenerationError(f"vLLM ended request {request_id} without finishing it")
        return last

    async def _stream_in_turn(self, turn: Turn, *, request_id: str, **arguments: Any) -> AsyncIterator[Any]:
        """As vLLM's `generate`, of a request that begins with the others of its turn."""
        llm = self._running()
        outputs: Any = None

        async def begin() -> None:
            nonlocal outputs
            outputs = await llm.add_request(request_id=request_id, **arguments)

        finished = False
        try:
            await self._turns.begin(turn, begin)
            while not finished:
                output = outputs.get_nowait() or await outputs.get()
                finished = output.finished
                yield output
        finally:
            if outputs is not None and not finished:
                await llm.abort(request_id)

    @contextlib.asynccontextmanager
    async def _held(self, goes_on: bool) -> AsyncIterator[None]:
        """vLLM takes requests inside, and begins none. Its prefix cache is empty then: what was in it hangs on what has
        been asked before, and how a prompt is cut into steps hangs on it. Unless they go on from what began so."""
        llm = self._running()
        await llm.pause_generation(mode="keep", clear_cache=not goes_on)
        try:
            yield
        finally:
            await llm.resume_generation()

    @contextlib.asynccontextmanager
    async def _naming_death(self) -> AsyncIterator[None]:
        """Turn vLLM's "the engine died" into an error that says what died and how. A call of its core that one of the
        core's own processes dies under fails before the core does, and with no word of that."""
        try:
            yield
        except Exception as error:
            if not await is_death(error, self._llm):
                raise
            died = f"the vLLM engine of {self.model_path!r} ({self.device}) died: {describe_ends(self._processes)}"
            raise EngineDeadError(died) from error


def _new_children(before: set[Any]) -> list[Any]:
    return [child for child in multiprocessing.active_children() if child not in before]
