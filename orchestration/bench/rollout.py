"""Tokens per second: our rollout workers over plain vLLM, and with an adapter over without one.

Two engines with the same settings live side by side and take turns: a rollout worker, reached as the loop reaches it,
and `vllm.LLM`. A round gives each of them the same prompts, and every figure is the median over rounds of a ratio
within one round, so that a machine that slows down meanwhile slows down both sides. Turns are a rest apart, so that
none pays for the one before. Completions have equal length (end tokens are ignored), so that all sequences are under
way all the time. A first round warms up and is not counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orchestration.bench.machine import machine_line
from orchestration.bench.neighbours import busy_neighbours, neighbour_figures
from orchestration.bench.plain_vllm import PlainVllm
from orchestration.cluster.actors import RolloutActor
from orchestration.cluster.cluster import Cluster
from orchestration.concurrency import gather_or_cancel
from orchestration.data.source import PromptSource
from orchestration.machine import doctor
from orchestration.models.prompting import make_prompt_builder, training_sampling
from orchestration.models.resolve import resolve_model
from orchestration.report.progress import counted
from orchestration.settings.config import RunConfig, load_config
from orchestration.storage.cache import Progress
from rollout_server.forking.leftovers import owned_prefix
from rollout_server.types import AdapterPayload, AdapterVersion, Completion, Prompt, SamplingParams

NUM_ROUNDS = 5
NUM_SEQUENCES = 64
"""Sequences under way at once."""

_REST_S = 1.5
"""vLLM's processes look for more work in a loop for a second after the last: on a core that another's turn needs."""

_Generate = Callable[[Prompt, SamplingParams], Coroutine[Any, Any, Sequence[Completion]]]

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_FIXED = {
    "dashboard": "false",
    "rollout.num_workers": "1",
    "learner.num_ranks": "1",
    "rollout.gpu_memory_utilization": "0.4",  # two engines share the GPU
}

# vLLM's scheduler is its own, and a step of as many tokens as it would give a worker: through `LLM` it takes others.
_PLAIN: dict[str, Any] = {"max_num_batched_tokens": 2048, "scheduler_cls": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    """Tokens per second of each way to generate, within one round."""

    worker_lora: float
    vllm_lora: float
    vllm_base: float
    worker_lora_beside: float | None = None
    """Beside busy neighbours."""


def run(
    overrides: Sequence[str], progress: Progress, *, neighbours: int = 0, num_sequences: int = NUM_SEQUENCES
) -> dict[str, Any]:
    """Measure a worker and plain vLLM side by side.

    Args:
        overrides: A recipe, if one is named first, and settings, as for `rlvr train`.
        neighbours: Busy loops that the worker is measured beside too, once a round.
        progress: Told what is being done.
        num_sequences: Under way at once.

    Returns:
        `machine`, `settings` and `figures`.

    Raises:
        RlvrError: The machine or a setting does not allow it.
        RolloutError: An engine failed.
    """
    words = list(overrides)
    recipe = words.pop(0) if words and "=" not in words[0] else "arithmetic"
    fixed = _FIXED | {"rollout.max_num_seqs": str(num_sequences)}
    config = load_config(recipe, [*(f"{name}={value}" for name, value in fixed.items()), *words])
    doctor.require_machine(config)
    return asyncio.run(_measure(config, progress, neighbours, num_sequences))


async def _measure(config: RunConfig, progress: Progress, neighbours: int, num_sequences: int) -> dict[str, Any]:
    begin = counted(progress, 3 + (3 + bool(neighbours)) * (NUM_ROUNDS + 1))
    begin(f"preparing the model {config.model.name} and its prompts")
    model_path = resolve_model(config.model.name, config.model.revision, progress=progress)
    prompts, sampling = _workload(config, model_path, num_sequences)
    payload = random_adapter(model_path, rank=config.learner.lora.r)
    async with AsyncExitStack() as stack:
        begin("starting Ray and a rollout worker")
        cluster = Cluster(config, run_id=f"bench-rollout-{os.getpid()}")
        stack.push_async_callback(cluster.shutdown)
        placement = cluster.connect()
        generator = await cluster.start_rollout()
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(dir=config.rollout.adapter_dir, prefix=owned_prefix("bench"))
        )
        adapter = _write_adapter(payload, Path(folder))
        for member in generator.members:
            await member.actor.call(RolloutActor.publish, timeout_s=config.rollout.publish_timeout_s)(payload)
        begin("starting plain vLLM")
        plain = await asyncio.to_thread(
            PlainVllm, str(model_path), config.rollout, placement.device, config.seed * 1000, **_PLAIN
        )
        stack.callback(plain.shutdown)
        rounds = [
            await _round(number, prompts[number], sampling, generator.generate, plain, adapter, begin, neighbours)
            for number in range(NUM_ROUNDS + 1)
        ]
    return {
        "machine": machine_line(),
        "settings": _settings(config, sampling, prompts, placement.mode, payload),
        "figures": _figures(rounds[1:]),
    }


def _workload(config: RunConfig, model_path: Path, num_sequences: int) -> tuple[list[list[Prompt]], SamplingParams]:
    """Prompts for each round, all different, and how their groups are drawn."""
    problems = config.data.load()
    builder = make_prompt_builder(config, problems, model_path)
    source = PromptSource(problems.train, builder.build, config.seed)
    sampling = training_sampling(config, builder)
    sampling = replace(sampling, stop=(), stop_token_ids=(), ignore_end_token=True)
    num_prompts = max(1, num_sequences // sampling.num_generations)
    return [[source.next().prompt for _ in range(num_prompts)] for _ in range(NUM_ROUNDS + 1)], sampling


async def _round(
    number: int,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    generate: _Generate,
    plain: PlainVllm,
    adapter: AdapterVersion,
    begin: Callable[[str], None],
    neighbours: int,
) -> _Round:
    async def worker_lora() -> float:
        return await _tokens_per_s(gather_or_cancel(generate(prompt, sampling) for prompt in prompts))

    async def vllm_lora() -> float:
        return await _tokens_per_s(asyncio.to_thread(plain.generate, prompts, sampling, adapter))

    async def vllm_base() -> float:
        return await _tokens_per_s(asyncio.to_thread(plain.generate, prompts, sampling, None))

    turns = [("worker_lora", worker_lora), ("vllm_lora", vllm_lora), ("vllm_base", vllm_base)]
    if number % 2:  # nobody is always the one that goes first
        turns.reverse()
    rates = {}
    for name, turn in turns:
        begin(f"measuring {name}, round {number} of {NUM_ROUNDS}" if number else f"warming up {name}")
        await asyncio.sleep(_REST_S)
        rates[name] = await turn()
    if neighbours:
        begin(f"measuring worker_lora beside {neighbours} busy loops, round {number} of {NUM_ROUNDS}")
        await asyncio.sleep(_REST_S)
        with busy_neighbours(neighbours):
            rates["worker_lora_beside"] = await worker_lora()
    return _Round(**rates)


async def _tokens_per_s(groups: Awaitable[Sequence[Sequence[Completion]]]) -> float:
    began = time.perf_counter()
    finished = await groups
    seconds = time.perf_counter() - began
    return sum(len(completion.token_ids) for group in finished for completion in group) / seconds


def _figures(rounds: Sequence[_Round]) -> dict[str, float]:
    def median(value: Callable[[_Round], float]) -> float:
        return statistics.median(map(value, rounds))

    beside = [1 / r.worker_lora_beside for r in rounds if r.worker_lora_beside is not None]
    return {
        **neighbour_figures([1 / r.worker_lora for r in rounds], beside),
        "ratio_to_vllm": median(lambda r: r.worker_lora / r.vllm_lora),
        "ratio_lora_to_base": median(lambda r: r.vllm_lora / r.vllm_base),
        "worker_tokens_per_s": median(lambda r: r.worker_lora),
        "vllm_tokens_per_s": median(lambda r: r.vllm_lora),
        "vllm_base_tokens_per_s": median(lambda r: r.vllm_base),
        "ratio_to_vllm_min": min(r.worker_lora / r.vllm_lora for r in rounds),
        "ratio_to_vllm_max": max(r.worker_lora / r.vllm_lora for r in rounds),
        "ratio_lora_to_base_min": min(r.vllm_lora / r.vllm_base for r in rounds),
        "ratio_lora_to_base_max": max(r.vllm_lora / r.vllm_base for r in rounds),
    }


def _settings(
    config: RunConfig,
    sampling: SamplingParams,
    prompts: Sequence[Sequence[Prompt]],
    mode: str,
    payload: AdapterPayload,
) -> dict[str, Any]:
    lengths = [len(prompt.token_ids) for batch in prompts for prompt in batch]
    return {
        "model": config.model.name,
        "placement": mode,
        "dtype": config.rollout.dtype,
        "sequences_at_once": len(prompts[0]) * sampling.num_generations,
        "prompt_tokens_mean": statistics.mean(lengths),
        "completion_tokens": sampling.max_completion_length,
        "temperature": sampling.temperature,
        "lora_r": config.learner.lora.r,
        "adapter_bytes": payload.num_bytes,
        "rounds": NUM_ROUNDS,
    }


def random_adapter(model_path: Path, *, rank: int) -> AdapterPayload:
    """Make a peft adapter with random weights on all seven projections of a Llama-like model.

    B is small: what is measured does not depend on the weights, but log-probabilities should stay finite.

    Args:
        model_path: A folder whose configuration gives the shapes.
        rank: Of the adapter.
    """
    import numpy as np
    from safetensors.numpy import save

    model = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
    hidden, inner = model["hidden_size"], model["intermediate_size"]
    head = model.get("head_dim") or hidden // model["num_attention_heads"]
    queries, keys = head * model["num_attention_heads"], head * model["num_key_value_heads"]
    sides = {  # input and output width
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    generator = np.random.default_rng(0)
    tensors = {}
    for layer in range(model["num_hidden_layers"]):
        for name, (width_in, width_out) in sides.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            a, b = generator.normal(size=(rank, width_in)), generator.normal(size=(width_out, rank))
            tensors[f"{prefix}.lora_A.weight"] = (a / width_in**0.5).astype(np.float32)
            tensors[f"{prefix}.lora_B.weight"] = (1e-3 * b).astype(np.float32)
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(_PROJECTIONS)}
    files = (("adapter_config.json", json.dumps(settings).encode()), ("adapter_model.safetensors", save(tensors)))
    return AdapterPayload(version=1, files=files)


def _write_adapter(payload: AdapterPayload, folder: Path) -> AdapterVersion:
    for name, content in payload.files:
        (folder / name).write_bytes(content)
    return AdapterVersion(number=payload.version, path=str(folder), key="bench", num_bytes=payload.num_bytes)
