"""vLLM's settings from ours: the arguments of its engine and the variables of its environment. Pure; no vLLM here."""

from __future__ import annotations

import os
from typing import Any

from rollout_server.config import Device, RolloutConfig

_CPU_BLOCKS = 32
"""What its attention's kernels on CPUs come in."""
_SUPPORTED_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks vLLM allocates for (`vllm.config.lora.MaxLoRARanks`)."""

_SCHEDULERS = "rollout_server.publishing.probes_alone"

_SMALL_MACHINE_CPUS = 4
"""vLLM keeps one core free for its scheduler process. Up to this many cores that costs more than it gives: on two
cores it halves the speed."""


def engine_arguments(model_path: str, config: RolloutConfig, device: Device, seed: int) -> dict[str, Any]:
    """Keyword arguments of vLLM's `EngineArgs`: the same for our worker and for the baseline it is measured against.

    Args:
        model_path: Folder of the base model.
        config: Ours.
        device: On CPUs memory is a size, on GPUs a share.
        seed: Of the engine's sampler.

    Raises:
        ValueError: `max_lora_rank` is more than vLLM serves, or `block_size` nothing that it takes.
    """
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
        "language_model_only": True,  # nothing of a model that reads images too is loaded for them
        "enable_lora": True,
        "max_loras": lora_slots,
        "max_cpu_loras": lora_slots,
        "max_lora_rank": _allocated_rank(config.max_lora_rank),
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        "scheduling_policy": "priority",  # completions all have the same, and go in their order; probes go first
    }
    if config.tensor_parallel_size > 1:
        # Inside a placement group, as our workers are, vLLM would choose Ray for its processes, and find no room there.
        arguments["distributed_executor_backend"] = "mp"
    if arguments["dtype"] != "float32":
        # Logits rounded to 8 bits are an eighth of a nat apart where they are large, and the learner's are not rounded.
        arguments["hf_overrides"] = {"head_dtype": "float32"}
    if config.block_size is not None:
        if device == "cpu" and config.block_size % _CPU_BLOCKS:
            raise ValueError(f"rollout.block_size={config.block_size}: on CPUs vLLM takes multiples of {_CPU_BLOCKS}")
        arguments["block_size"] = config.block_size
    if config.max_num_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = config.max_num_batched_tokens
    if device == "cpu":
        arguments["kv_cache_memory_bytes"] = int(config.kv_cache_gib * 2**30)
        short = config.max_num_batched_tokens is None
        arguments["scheduler_cls"] = f"{_SCHEDULERS}.{'ShortSteps' if short else 'ProbesAlone'}"
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


def prepare_environment(config: RolloutConfig, device: Device) -> None:
    """Set what vLLM takes from the environment, unless the user has; its child processes inherit it."""
    ready = {"VLLM_ENGINE_READY_TIMEOUT_S": str(max(1, int(config.start_timeout_s)))}
    for name, value in {**import_environment(device), **ready}.items():
        os.environ.setdefault(name, value)


def import_environment(device: Device) -> dict[str, str]:
    """What vLLM and the libraries under it read when they are imported."""
    environment = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if device != "cpu":
        environment["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # its own is a fork, in processes with Ray's threads too
        # FlashInfer's sampler gives no processed log-probs, which all our requests want. Model runner V2 loads it all
        # the same, and cannot start without the library.
        environment["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    if device == "cpu":
        # With LoRA vLLM compiles no model on CPUs, but still helpers of its sampler: seconds of a first request's time,
        # or twenty where a C++ compiler has not left its results yet, for work that takes a millisecond uncompiled.
        environment["TORCH_COMPILE_DISABLE"] = "1"
        # Threads that wait for each other go to sleep after some 30 µs. By default they look for milliseconds, each on
        # a core that another thread may need: beside two busy processes on two cores, far more than the fair slowdown.
        environment["GOMP_SPINCOUNT"] = "3000"
    if device == "cpu" and num_cores() <= _SMALL_MACHINE_CPUS:
        environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    return environment


def num_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0))
