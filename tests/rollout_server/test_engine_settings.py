"""What vLLM is told of our settings. No vLLM here."""

from __future__ import annotations

import pytest

from rollout_server.config import RolloutConfig
from rollout_server.engine_settings import engine_arguments, import_environment


def test_the_tokens_of_an_engine_step_are_few_on_cpus_unless_set() -> None:
    bounded = RolloutConfig(max_num_batched_tokens=512)
    assert "max_num_batched_tokens" not in engine_arguments("model", RolloutConfig(), "cpu", seed=0)
    for config, scheduler in ((RolloutConfig(), "ShortSteps"), (bounded, "ProbesAlone")):
        assert engine_arguments("model", config, "cpu", seed=0)["scheduler_cls"].endswith(f".{scheduler}")
        assert "scheduler_cls" not in engine_arguments("model", config, "cuda", seed=0)
    assert engine_arguments("model", bounded, "cuda", seed=0)["max_num_batched_tokens"] == 512


def test_memory_is_a_size_on_cpus_and_a_share_on_gpus() -> None:
    config = RolloutConfig(kv_cache_gib=0.5, gpu_memory_utilization=0.7)
    on_cpu, on_gpu = (engine_arguments("model", config, device, seed=0) for device in ("cpu", "cuda"))
    assert on_cpu["kv_cache_memory_bytes"] == 2**29
    assert "gpu_memory_utilization" not in on_cpu
    assert on_gpu["gpu_memory_utilization"] == 0.7
    assert "kv_cache_memory_bytes" not in on_gpu


def test_an_engine_of_several_devices_starts_its_own_processes() -> None:
    """vLLM's own choice inside a Ray placement group is Ray, whose bundle has no room for more."""
    assert "distributed_executor_backend" not in engine_arguments("model", RolloutConfig(), "cuda", seed=0)
    split = RolloutConfig(tensor_parallel_size=2)
    assert engine_arguments("model", split, "cuda", seed=0)["distributed_executor_backend"] == "mp"


def test_processes_on_gpus_are_spawned() -> None:
    """vLLM forks where it sees neither CUDA nor an actor, as in the driver of a benchmark, full of Ray's threads."""
    assert import_environment("cuda")["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"
    assert import_environment("cuda")["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in import_environment("cpu")


def test_logits_are_never_rounded_to_16_bits() -> None:
    """The learner's are not, and a step of one is an eighth of a nat where they are large."""
    for dtype, device, overrides in (
        ("auto", "cpu", None),
        ("auto", "cuda", {"head_dtype": "float32"}),
        ("bfloat16", "cpu", {"head_dtype": "float32"}),
        ("float32", "cuda", None),
    ):
        assert engine_arguments("model", RolloutConfig(dtype=dtype), device, seed=0).get("hf_overrides") == overrides


def test_blocks_that_the_kernels_do_not_take_are_refused_before_an_engine_starts() -> None:
    for size, device in ((64, "cpu"), (16, "cuda")):
        assert engine_arguments("model", RolloutConfig(block_size=size), device, seed=0)["block_size"] == size
    with pytest.raises(ValueError, match=r"rollout\.block_size=16: on CPUs vLLM takes multiples of 32"):
        engine_arguments("model", RolloutConfig(block_size=16), "cpu", seed=0)
