"""An optimizer step of the learner alone: no Ray, no vLLM, no TRL."""

from __future__ import annotations

import gc
import json
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from learner.config import LearnerConfig, LossConfig
from learner.types import ScoredCompletion, ScoredGroup
from orchestration.bench.gpu.measuring import Measuring
from orchestration.bench.gpu.trees import LARGE, LARGE_ON_CPU, TreeShape
from orchestration.bench.learner_floor import multiply_adds
from orchestration.bench.one_rank import one_rank
from orchestration.models.resolve import resolve_model
from rollout_server.arrays import Logprobs, TokenIds
from rollout_server.types import Completion, FinishReason

ROUNDS = 3
_ANY_AGE = 2**31


def steps(measuring: Measuring) -> None:
    """A step with the tree and without, and by small micro-batches, over the same batch."""
    model = resolve_model("random:qwen2.5-0.5b" if measuring.cuda else "tiny")
    large, small = (None, 2_048) if measuring.cuda else (512, 128)
    speed = _matmul_flops(measuring)
    shape = LARGE if measuring.cuda else LARGE_ON_CPU
    for case, share, budget in (("tree", True, large), ("tree", True, small), ("no tree", False, large)):
        told = "of free memory" if budget is None else str(budget)
        _measure(measuring, f"{case}, budget {told}", model, shape, speed, share=share, budget=budget)


def seven(measuring: Measuring) -> None:
    """A step at the shapes of Qwen2.5-7B, with gradient checkpointing, which fits a card of 40 GB."""
    model = resolve_model("random:qwen2.5-7b")
    shape = TreeShape(header=700, num_questions=8, question=60, num_completions=8, completion=100)
    speed = _matmul_flops(measuring)
    _measure(measuring, "7B", model, shape, speed, share=True, budget=None, checkpointing=True, rounds=1)


def _measure(
    measuring: Measuring,
    case: str,
    model: Path,
    shape: TreeShape,
    speed: float,
    *,
    share: bool,
    budget: int | None,
    checkpointing: bool = False,
    rounds: int = ROUNDS,
) -> None:
    """Says the median of several steps, after one that warms up, and the most memory of all that is held."""
    gc.collect()  # of a rank before this one
    if measuring.cuda:
        torch.cuda.empty_cache()
    vocabulary = json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    groups = groups_of(shape, vocabulary=vocabulary)
    config = LearnerConfig(
        dtype="bfloat16" if measuring.cuda else "float32",
        learning_rate=1e-6,
        loss=LossConfig(vllm_importance_sampling_correction=False),
        share_prefixes=share,
        max_tokens_per_microbatch=budget,
        gradient_checkpointing=checkpointing,
    )
    begun = time.perf_counter()
    with one_rank(str(model), config, measuring.device) as rank:
        started = time.perf_counter()
        update = rank.update(groups, max_staleness=_ANY_AGE)
        first = time.perf_counter() - started
        if measuring.cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(rounds):
            begun_step = time.perf_counter()
            update = rank.update(groups, max_staleness=_ANY_AGE)
            seconds.append(time.perf_counter() - begun_step)
        peak = torch.cuda.max_memory_allocated() if measuring.cuda else _resident_bytes()
    sequences = list(shape.tree(vocabulary=vocabulary).rows)
    floor = _floor_s(model, shape, vocabulary, speed, checkpointing=checkpointing)
    taken = statistics.median(seconds)
    measuring.say(
        case,
        tokens=sum(len(group.prompt_token_ids) * len(group.members) for group in groups) + sum(map(len, sequences)),
        computed_tokens=update.num_distinct_tokens,
        seconds=round(taken, 3),
        first_step_seconds=round(first, 2),
        start_seconds=round(started - begun, 1),
        peak_gib=round(peak / 2**30, 2),
        completion_tokens_per_s=round(sum(map(len, sequences)) / taken),
        share_of_matmul=round(floor / taken, 3),
        grad_norm=update.values["grad_norm"],
    )


def groups_of(shape: TreeShape, *, vocabulary: int) -> tuple[ScoredGroup, ...]:
    """A batch of this shape whose rewards differ in every group."""
    groups = []
    for number, (prompt, completions) in enumerate(shape.prompts(vocabulary=vocabulary)):
        members = tuple(_member(f"p{number}", tokens, float(index % 2)) for index, tokens in enumerate(completions))
        groups.append(ScoredGroup(prompt_id=f"p{number}", prompt_token_ids=TokenIds(prompt), members=members))
    return tuple(groups)


def _member(prompt_id: str, token_ids: Sequence[int], reward: float) -> ScoredCompletion:
    completion = Completion(
        prompt_id=prompt_id,
        token_ids=TokenIds(token_ids),
        sampling_logprobs=Logprobs((0.0,) * len(token_ids)),
        text="",
        finish_reason=FinishReason.STOP,
        adapter_version=0,
    )
    return ScoredCompletion(completion=completion, rewards=(reward,), total=reward)


def _floor_s(model: Path, shape: TreeShape, vocabulary: int, speed: float, *, checkpointing: bool) -> float:
    """Seconds that the distinct tokens' products take at the card's own speed."""
    from learner.tree.prefix_tree import TokenSequence

    sequences = [
        TokenSequence(prompt_token_ids=TokenIds(prompt), completion_token_ids=TokenIds(completion))
        for prompt, completions in shape.prompts(vocabulary=vocabulary)
        for completion in completions
    ]
    return 2 * multiply_adds(model, sequences, gradient_checkpointing=checkpointing) / speed


def _matmul_flops(measuring: Measuring) -> float:
    """Of a large product of random numbers in the model's precision: the best of several, said as a line."""
    size, dtype = (8192, torch.bfloat16) if measuring.cuda else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=measuring.device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(10):
        _wait(measuring)
        begun = time.perf_counter()
        a @ b
        _wait(measuring)
        times.append(time.perf_counter() - begun)
    flops = 2 * size**3 / min(times)
    measuring.say(f"matrix product {size}", tflops=round(flops / 1e12, 3))
    return float(flops)


def _wait(measuring: Measuring) -> None:
    if measuring.cuda:
        torch.cuda.synchronize()


def _resident_bytes() -> int:
    """The most that this process has held until now."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
