"""What the contenders of `rlvr bench learner` have in common: their setting, how they warm up, time and memory."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from learner.config import LearnerConfig, LossConfig
from learner.types import ScoredGroup

LEARNING_RATE = 1e-6
SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The same for all contenders."""

    model_path: str
    device: str
    dtype: str
    threads: int
    gradient_checkpointing: bool
    max_tokens_per_microbatch: int | None
    num_rounds: int


def learner_config(setting: Setting, *, share_prefixes: bool) -> LearnerConfig:
    return LearnerConfig(
        dtype="float32" if setting.dtype == "float32" else "bfloat16",
        learning_rate=LEARNING_RATE,
        loss=LossConfig(vllm_importance_sampling_correction=False),
        share_prefixes=share_prefixes,
        gradient_checkpointing=setting.gradient_checkpointing,
        max_tokens_per_microbatch=setting.max_tokens_per_microbatch,
        num_threads=setting.threads,
    )


def warm_up_batch(groups: Sequence[ScoredGroup], device: str) -> tuple[ScoredGroup, ...]:
    """What is learned from before anything is measured: on GPUs, for whose sizes kernels are compiled or chosen and
    memory is laid out, the batch itself; on CPUs, where a step takes minutes, its sequences cut short."""
    return tuple(groups) if device != "cpu" else _small(groups)


def _small(groups: Sequence[ScoredGroup]) -> tuple[ScoredGroup, ...]:
    """As many sequences, all short: optimizer state is made and kernels are chosen before anything is measured."""

    def short(group: ScoredGroup) -> ScoredGroup:
        members = tuple(
            replace(
                member,
                completion=replace(
                    member.completion,
                    token_ids=member.completion.token_ids[:4],
                    sampling_logprobs=member.completion.sampling_logprobs[:4],
                    turns=(),
                ),
            )
            for member in group.members
        )
        return replace(group, prompt_token_ids=group.prompt_token_ids[-8:], members=members)

    return tuple(map(short, groups))


class Memory:
    """Seconds and peak memory of a block, the latter above what is held when this object is made."""

    def __init__(self, device: str) -> None:
        gc.collect()
        self._cuda = device != "cpu"
        if not self._cuda:
            # What loading left behind in the allocator would be counted as held, and hide as much of a step's peak.
            ctypes.CDLL(None).malloc_trim(0)
        self._before = self._held()

    @contextmanager
    def measured(self) -> Iterator[dict[str, float]]:
        self._reset_peak()
        measured: dict[str, float] = {}
        self._synchronize()
        began = time.perf_counter()
        yield measured
        self._synchronize()
        measured["seconds"] = time.perf_counter() - began
        measured["peak_bytes"] = float(self._peak() - self._before)

    def _synchronize(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.synchronize()

    def _held(self) -> int:
        if self._cuda:
            import torch

            return int(torch.cuda.memory_allocated())
        return _status("VmRSS")

    def _peak(self) -> int:
        if self._cuda:
            import torch

            return int(torch.cuda.max_memory_allocated())
        return _status("VmHWM")

    def _reset_peak(self) -> None:
        if self._cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
