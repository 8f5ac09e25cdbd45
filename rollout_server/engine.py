"""vLLM behind a small door: everything that depends on vLLM, and on which version of it, is in this file.

Written for vLLM 0.26 to 0.32. vLLM reads much of its configuration from the environment, some of it at import; so it
is imported inside functions, after `_prepare_environment`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rollout_server.config import RolloutConfig
from rollout_server.errors import EngineDeadError, EngineStartError, GenerationError
from rollout_server.processes import describe_ends
from rollout_server.types import AdapterVersion, Completion, EngineStep, FinishReason, Prompt, SamplingParams

logger = logging.getLogger(__name__)

Device = Literal["cpu", "cuda"]

_SUPPORTED_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks vLLM allocates for (`vllm.config.lora.MaxLoRARanks`)."""

_REMEMBERED_STEPS = 2000

_SMALL_MACHINE_CPUS = 4
"""vLLM keeps one core free for its scheduler process. Up to this many cores that costs more than it gives: on two
cores it halves the speed."""

_SHUTDOWN_TIMEOUT_S = 15.0
"""What vLLM's processes get to end by themselves before they are killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLoad:
    """What an engine is doing, as its scheduler last said."""

    running: int
    """Sequences in the batch."""
    waiting: int
    """Sequences in the queue."""
    generated_tokens: int
    """Completion tokens since the start."""


@dataclass(slots=True)
class _Counters:
    running: int = 0
    waiting: int = 0
    generated_tokens: int = 0
    steps: deque[EngineStep] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_STEPS))

    def record(self, scheduler_stats: Any, iteration_stats: Any) -> None:
        """Take over what vLLM reports once per engine step; either part may be None."""
        if scheduler_stats is not None:
            self.running = scheduler_stats.num_running_reqs
            self.waiting = scheduler_stats.num_waiting_reqs
        if iteration_stats is not None:
            self.generated_tokens += iteration_stats.num_generation_tokens
            gaps_s = tuple(iteration_stats.inter_token_latencies_iter)
            self.steps.append(EngineStep(at=time.monotonic(), token_gaps_s=gaps_s))


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
    _llm: Any = None
    _counters: _Counters = field(default_factory=_Counters)
    _request_numbers: itertools.count[int] = field(default_factory=itertools.count)
    _processes: list[Any] = field(default_factory=list)

    async def start(self) -> None:
        """Load the model and start vLLM's processes. Takes tens of seconds.

        Raises:
            EngineStartError: The model cannot be served, or the start took longer than `start_timeout_s`.
        """
        _prepare_environment(self.config, self.device)
        before = set(multiprocessing.active_children())
        try:
            async with asyncio.timeout(self.config.start_timeout_s):
                self._llm = await asyncio.to_thread(self._build)
        except TimeoutError:
            _kill(_new_children(before))
            raise EngineStartError(
                f"vLLM did not start on {self.model_path!r} ({self.device}) within {self.config.start_timeout_s:g} s; "
                "raise rollout.start_timeout_s if the model is large"
            ) from None
        except Exception as error:
            raise EngineStartError(
                f"vLLM did not start on {self.model_path!r} ({self.device}): {type(error).__name__}: {error}"
            ) from error
        self._processes = _new_children(before)

    def _build(self) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(**engine_arguments(self.model_path, self.config, self.device, self.seed))
        return AsyncLLM.from_engine_args(arguments, stat_loggers=[_stat_logger_factory(self._counters)])

    async def generate(self, prompt: Prompt, sampling: SamplingParams, lora: AdapterVersion | None) -> list[Completion]:
        """Draw a group of `sampling.num_generations` completions of one prompt under one adapter (None: the base).

        The token that ended a completion is its last one. With `temperature=0` the log-probabilities are those at
        temperature 1.

        Raises:
            ValueError: The prompt leaves no room for a completion in the context.
            EngineDeadError: The engine died, now or before.
            GenerationError: vLLM gave up on a completion.
        """
        parameters = _vllm_sampling_parameters(prompt, sampling, self.config.max_model_len)
        output = await self._finish_request(prompt.token_ids, parameters, lora)
        version = 0 if lora is None else lora.number
        return [_completion_from(prompt.prompt_id, piece, version) for piece in output.outputs]

    async def prompt_logprobs(self, token_ids: Sequence[int], lora: AdapterVersion | None) -> list[float]:
        """Log p(token_ids[i+1] | token_ids[:i+1]) at temperature 1, natural log; one less than there are tokens.

        vLLM computes them afresh: a request for prompt log-probabilities never reads the prefix cache.
        """
        from vllm import SamplingParams as VllmSamplingParams
        from vllm.sampling_params import RequestOutputKind

        if len(token_ids) >= self.config.max_model_len:
            raise ValueError(
                f"a probe of {len(token_ids)} tokens does not fit the context of {self.config.max_model_len} "
                "(rollout.max_model_len)"
            )
        parameters = VllmSamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._finish_request(tuple(token_ids), parameters, lora)
        logprobs = list(output.prompt_logprobs.logprobs)
        assert len(logprobs) == len(token_ids) - 1  # the first token has none
        return logprobs

    async def add_lora(self, version: AdapterVersion) -> None:
        """Load an adapter beside those being served; no request is paused."""
        with self._naming_death():
            await self._running().add_lora(_lora_request(version))

    async def remove_lora(self, version: AdapterVersion) -> None:
        """Forget an adapter that no request uses."""
        with self._naming_death():
            await self._running().remove_lora(version.number)

    def load(self) -> EngineLoad:
        """What the engine is doing now."""
        return EngineLoad(
            running=self._counters.running,
            waiting=self._counters.waiting,
            generated_tokens=self._counters.generated_tokens,
        )

    def recent_steps(self) -> tuple[EngineStep, ...]:
        """The engine's last steps, oldest first; a bounded number of them."""
        return tuple(self._counters.steps)

    async def shutdown(self) -> None:
        """Stop vLLM's processes; harmless when there are none."""
        llm, self._llm = self._llm, None
        if llm is None:
            return
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

    async def _finish_request(self, token_ids: tuple[int, ...], parameters: Any, lora: AdapterVersion | None) -> Any:
        from vllm.inputs import tokens_input

        request_id = f"{os.getpid()}-{next(self._request_numbers)}"
        last = None
        with self._naming_death():
            stream: AsyncIterator[Any] = self._running().generate(
                tokens_input(list(token_ids)),
                parameters,
                request_id,
                lora_request=None if lora is None else _lora_request(lora),
            )
            async for output in stream:
                last = output
        if last is None or not last.finished:
            raise GenerationError(f"vLLM ended request {request_id} without finishing it")
        return last

    @contextlib.contextmanager
    def _naming_death(self) -> Any:
        """Turn vLLM's "the engine died" into an error that says what died and how."""
        from vllm.v1.engine.exceptions import EngineDeadError as VllmEngineDeadError

        try:
            yield
        except VllmEngineDeadError as error:
            raise EngineDeadError(
                f"the vLLM engine of {self.model_path!r} ({self.device}) died: {describe_ends(self._processes)}"
            ) from error


class PlainVllm:
    """`vllm.LLM` with the settings of a worker's engine and nothing of ours around it: the baseline of benchmarks."""

    def __init__(self, model_path: str, config: RolloutConfig, device: Device, seed: int) -> None:
        _prepare_environment(config, device)
        from vllm import LLM

        self._max_model_len = config.max_model_len
        self._llm = LLM(**engine_arguments(model_path, config, device, seed))

    def generate(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, lora: AdapterVersion | None
    ) -> list[list[Completion]]:
        """One group for each prompt, through `LLM.generate`."""
        parameters = [_vllm_sampling_parameters(prompt, sampling, self._max_model_len) for prompt in prompts]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt.token_ids)} for prompt in prompts],
            parameters,
            use_tqdm=False,
            lora_request=None if lora is None else _lora_request(lora),
        )
        version = 0 if lora is None else lora.number
        return [
            [_completion_from(prompt.prompt_id, piece, version) for piece in output.outputs]
            for prompt, output in zip(prompts, outputs, strict=True)
        ]

    def shutdown(self) -> None:
        """Stop vLLM's processes."""
        self._llm.llm_engine.engine_core.shutdown(_SHUTDOWN_TIMEOUT_S)


def engine_arguments(model_path: str, config: RolloutConfig, device: Device, seed: int) -> dict[str, Any]:
    """Keyword arguments of vLLM's `EngineArgs`: the same for our worker and for the baseline it is measured against."""
    lora_slots = config.max_adapter_versions
    if device == "cpu":
        # vLLM's CPU operations without our plugin read index -1 ("no adapter") as the last slot: keep that one empty.
        lora_slots += 1
    arguments: dict[str, Any] = {
        "model": model_path,
        "dtype": _dtype(config, device),
        "seed": seed,
        "max_model_len": config.max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": config.enforce_eager,
        "enable_prefix_caching": True,
        "enable_lora": True,
        "max_loras": lora_slots,
        "max_cpu_loras": lora_slots,
        "max_lora_rank": _allocated_rank(config.max_lora_rank),
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
    }
    if config.max_num_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = config.max_num_batched_tokens
    if device == "cpu":
        arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gib * 2**30)
    else:
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    return arguments


def _dtype(config: RolloutConfig, device: Device) -> str:
    if config.dtype != "auto":
        return config.dtype
    return "float32" if device == "cpu" else "bfloat16"


def _allocated_rank(rank: int) -> int:
    for supported in _SUPPORTED_LORA_RANKS:
        if rank <= supported:
            return supported
    raise ValueError(f"max_lora_rank={rank} is more than vLLM serves ({_SUPPORTED_LORA_RANKS[-1]})")


def _prepare_environment(config: RolloutConfig, device: Device) -> None:
    """Set what vLLM takes from the environment, unless the user has; its child processes inherit it."""
    defaults = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(max(1, int(config.start_timeout_s))),
    }
    if device == "cpu" and len(os.sched_getaffinity(0)) <= _SMALL_MACHINE_CPUS:
        defaults["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _lora_request(version: AdapterVersion) -> Any:
    """The name is part of vLLM's prefix-cache key: with the checksum in it, no two adapters ever share a prefix."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"v{version.number}-{version.checksum[:16]}", version.number, version.path)


def _vllm_sampling_parameters(prompt: Prompt, sampling: SamplingParams, max_model_len: int) -> Any:
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind

    room = max_model_len - len(prompt.token_ids)
    if room < 1:
        raise ValueError(
            f"prompt {prompt.prompt_id!r} has {len(prompt.token_ids)} tokens and leaves no room for a completion in "
            f"the context of {max_model_len} (rollout.max_model_len)"
        )
    return VllmSamplingParams(
        n=sampling.num_generations,
        max_tokens=min(sampling.max_completion_length, room),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop=list(sampling.stop),
        include_stop_str_in_output=True,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_end_token,
        logprobs=0,  # of the sampled token only
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _completion_from(prompt_id: str, piece: Any, version: int) -> Completion:
    if piece.finish_reason not in ("stop", "length"):
        raise GenerationError(
            f"vLLM ended completion {piece.index} of prompt {prompt_id!r} with {piece.finish_reason!r} "
            f"after {len(piece.token_ids)} tokens"
        )
    return Completion(
        prompt_id=prompt_id,
        token_ids=tuple(piece.token_ids),
        sampling_logprobs=tuple(piece.logprobs.logprobs),
        text=piece.text,
        finish_reason=FinishReason(piece.finish_reason),
        adapter_version=version,
    )


def _stat_logger_factory(counters: _Counters) -> Any:
    """A vLLM stat logger that feeds `counters`. Made here, since its base class is vLLM's."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class CountingStatLogger(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            del vllm_config, engine_index

        def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
            counters.record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            """Nothing to say."""

    return CountingStatLogger


def _new_children(before: set[Any]) -> list[Any]:
    return [child for child in multiprocessing.active_children() if child not in before]


def _kill(processes: Sequence[Any]) -> None:
    for process in processes:
        process.kill()
