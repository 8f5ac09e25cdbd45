"""What goes into vLLM and comes out of it, as its types and as ours. vLLM and torch are imported in the functions."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.counters import Counters
from rollout_server.errors import GenerationError
from rollout_server.types import AdapterVersion, Completion, FinishReason, Prompt, SamplingParams


def lora_request(version: AdapterVersion) -> Any:
    """An adapter as vLLM knows it.

    The name is part of vLLM's prefix-cache key: with the version's own key in it, no two adapters ever share a prefix.
    """
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"v{version.number}-{version.key}", version.number, version.path)


def vllm_sampling_parameters(prompt: Prompt, sampling: SamplingParams, max_model_len: int) -> Any:
    """vLLM's `SamplingParams` for one group.

    Raises:
        ValueError: The prompt leaves no room for a completion in `max_model_len`.
    """
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
        min_p=sampling.min_p,
        stop=list(sampling.stop),
        include_stop_str_in_output=True,
        stop_token_ids=list(sampling.stop_token_ids),
        ignore_eos=sampling.ignore_end_token,
        logprobs=0,  # of the sampled token only
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def vllm_probe_parameters() -> Any:
    """vLLM's `SamplingParams` for the log-probabilities of a prompt's own tokens; one token is drawn in vain."""
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind

    return VllmSamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def completion_from(
    prompt_id: str, piece: Any, version: int, *, num_cached_tokens: int = 0, cache_block: int = 1
) -> Completion:
    """One of vLLM's `CompletionOutput`s as ours.

    Raises:
        GenerationError: vLLM gave up on it.
    """
    if piece.finish_reason not in ("stop", "length"):
        raise GenerationError(
            f"vLLM ended completion {piece.index} of prompt {prompt_id!r} with {piece.finish_reason!r} "
            f"after {len(piece.token_ids)} tokens"
        )
    return Completion(
        prompt_id=prompt_id,
        token_ids=TokenIds(piece.token_ids),
        sampling_logprobs=Logprobs(piece.logprobs.logprobs),
        text=piece.text,
        finish_reason=FinishReason(piece.finish_reason),
        adapter_version=version,
        num_cached_tokens=num_cached_tokens,
        cache_block=cache_block,
    )


def stat_logger_factory(counters: Counters) -> Any:
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


def take_threads(settings: Any) -> Sequence[int]:
    """As many threads as vLLM would give a worker that it spawns, by variables that only a new program reads. Returns
    the cores it would bind them to; none where threads are not to be bound."""
    import torch
    from vllm.utils.ompmultiprocessing import OMPProcessManager

    lists: list[list[int]] = OMPProcessManager(settings).cpu_lists
    if not lists:
        return ()
    torch.set_num_threads(len(lists[0]))  # sizes the pool that the worker will make, and begins no thread
    return lists[0]


async def is_death(error: Exception, llm: Any) -> bool:
    """Whether an error of vLLM's means that the engine is dead, or will be within a moment."""
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineDeadError):
        return True
    for _ in range(_DYING_POLLS if is_cut_off(error) else 0):
        if llm is None or llm.errored:
            return True
        await asyncio.sleep(_DYING_POLL_S)
    return False


def is_cut_off(error: Exception) -> bool:
    """Whether a call of vLLM's core failed as calls do when a process of the core's is gone: the core follows it."""
    return str(error).endswith(("method failed: cancelled", "method failed: Executor failed."))


_DYING_POLLS, _DYING_POLL_S = 100, 0.1
