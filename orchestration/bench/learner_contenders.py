"""The contenders of `rlvr bench learner`, each in a process of its own: ours, TRL's trainer, and the bare product."""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from learner.config import LearnerConfig, LossConfig
from learner.types import ScoredGroup

LEARNING_RATE = 1e-6
TRL_MICROBATCH = 8
"""`per_device_train_batch_size`, TRL's default."""
SEED = 0
_ANY_AGE = 2**31
"""The same groups are learned from again and again: how old they are by then is no concern of a measurement."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The same for all contenders."""

    model_path: str
    device: str
    dtype: str
    threads: int
    gradient_checkpointing: bool
    max_tokens_per_microbatch: int
    num_rounds: int


def serve(name: str, setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any) -> None:
    """Process entry: load, warm up, say so, then one step for every message, until the other side closes.

    Args:
        name: One of `CONTENDERS`.
        setting: The same for all of them.
        groups: The batch of every measured step.
        connection: Takes ("ready", {}), then ("done", figures) for every message, or ("failed", why).
    """
    import torch

    torch.set_num_threads(setting.threads)
    for name_of_a_launcher in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name_of_a_launcher, None)  # a contender is alone, whatever the bench itself was started by
    try:
        CONTENDERS[name](setting, groups, connection)
    except (EOFError, BrokenPipeError):
        return  # the parent has seen enough
    except Exception as error:
        connection.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))


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


def _ours(setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any, *, share_prefixes: bool) -> None:
    from learner.worker import LearnerRank

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    rank = LearnerRank(
        rank=0,
        world_size=1,
        master_addr="127.0.0.1",
        master_port=port,
        model_path=setting.model_path,
        config=learner_config(setting, share_prefixes=share_prefixes),
        temperature=1.0,
        seed=SEED,
        device=setting.device,
    )
    rank.start()
    memory = _Memory(setting.device)

    def update(batch: Sequence[ScoredGroup]) -> float:
        return rank.update(batch, max_staleness=_ANY_AGE).values["grad_norm"]

    update(_small(groups))
    connection.send(("ready", {}))
    while True:
        connection.recv()
        with memory.measured() as measured:
            grad_norm = update(groups)
        connection.send(("done", {**measured, "grad_norm": grad_norm}))


def _tree_on(setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any) -> None:
    _ours(setting, groups, connection, share_prefixes=True)


def _tree_off(setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any) -> None:
    _ours(setting, groups, connection, share_prefixes=False)


def _trl(setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any) -> None:
    """TRL's own trainer with its own loop, loss, micro-batches and optimizer; only generation is replaced, by a batch
    that is ready."""
    from transformers import TrainerCallback

    memory: list[_Memory] = []
    batches = iter([_small(groups), *[groups] * setting.num_rounds])

    class TakesTurns(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self._running: Any = None
            self._measured: dict[str, float] = {}

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:  # warms up
                memory.append(_Memory(setting.device))
                return
            if state.global_step == 1:
                connection.send(("ready", {}))
            connection.recv()
            self._running = memory[0].measured()
            self._measured = self._running.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self._running is not None:
                self._running.__exit__(None, None, None)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if self._running is not None and "grad_norm" in logs:
                connection.send(("done", {**self._measured, "grad_norm": float(logs["grad_norm"])}))

    trainer = make_trl_trainer(setting, groups, lambda: next(batches), [TakesTurns()])
    trainer.train()


def make_trl_trainer(
    setting: Setting, groups: Sequence[ScoredGroup], next_batch: Callable[[], Sequence[ScoredGroup]], callbacks: Any
) -> Any:
    """Construct TRL's `GRPOTrainer` on our policy's model and adapter.

    Args:
        setting: Precision, device and checkpointing.
        groups: Say how many sequences a step has.
        next_batch: Called in place of generation.
        callbacks: Of transformers' trainer.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from learner.policy.policy import load_policy
    from learner.step.plan import plan_step

    config = learner_config(setting, share_prefixes=False)
    device = torch.device(setting.device)
    model = load_policy(setting.model_path, config, device=device, seed=SEED).model
    model.get_base_model().config._attn_implementation = "sdpa"
    if setting.gradient_checkpointing:  # the trainer switches it on itself
        model.get_base_model().gradient_checkpointing_disable()
    num_sequences = sum(len(group.members) for group in groups)
    microbatch = min(TRL_MICROBATCH, num_sequences)
    arguments = GRPOConfig(
        output_dir=str(Path(tempfile.gettempdir()) / "rlvr-bench-trl"),
        per_device_train_batch_size=microbatch,
        gradient_accumulation_steps=num_sequences // microbatch,
        num_generations=len(groups[0].members),
        max_steps=setting.num_rounds + 1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=setting.gradient_checkpointing,
        bf16=False,  # no autocast: the model's own precision, as ours
        use_cpu=setting.device == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )

    class ReadyBatches(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            return trl_batch(plan_step(next_batch(), config), device)

    tokenizer = AutoTokenizer.from_pretrained(setting.model_path, local_files_only=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    dataset = Dataset.from_dict({"prompt": ["unused"] * num_sequences})
    return ReadyBatches(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def trl_batch(plan: Any, device: Any) -> dict[str, Any]:
    """A plan's sequences as TRL's generation returns them: prompts padded left, completions right."""
    import torch

    prompts = [sequence.prompt_token_ids for sequence in plan.sequences]
    completions = [sequence.completion_token_ids for sequence in plan.sequences]
    prompt_width, completion_width = max(map(len, prompts)), max(map(len, completions))
    columns = {
        "prompt_ids": [[0] * (prompt_width - len(row)) + list(row) for row in prompts],
        "prompt_mask": [[0] * (prompt_width - len(row)) + [1] * len(row) for row in prompts],
        "completion_ids": [list(row) + [0] * (completion_width - len(row)) for row in completions],
        "completion_mask": [[1] * len(row) + [0] * (completion_width - len(row)) for row in completions],
    }
    batch: dict[str, Any] = {name: torch.tensor(rows, device=device) for name, rows in columns.items()}
    batch["advantages"] = torch.tensor(plan.advantages, dtype=torch.float32, device=device)
    batch["num_items_in_batch"] = torch.tensor(plan.num_items, device=device)
    return batch


def _matmul(setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any) -> None:
    """The speed of a large product in the model's precision: the best of several, multiply and add counted as two."""
    import torch

    size = 2048 if setting.device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=setting.device, dtype=getattr(torch, setting.dtype)) for _ in range(2))
    out = torch.empty_like(a)
    memory = _Memory(setting.device)

    def best() -> float:
        found = []
        for _ in range(8):
            with memory.measured() as measured:
                torch.mm(a, b, out=out)
            found.append(measured["seconds"])
        return min(found)

    best()
    connection.send(("ready", {}))
    while True:
        connection.recv()
        connection.send(("done", {"flops": 2 * size**3 / best()}))


CONTENDERS: dict[str, Callable[[Setting, tuple[ScoredGroup, ...], Any], None]] = {
    "matmul": _matmul,
    "tree_on": _tree_on,
    "tree_off": _tree_off,
    "trl": _trl,
}


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
                ),
            )
            for member in group.members
        )
        return replace(group, prompt_token_ids=group.prompt_token_ids[-8:], members=members)

    return tuple(map(short, groups))


class _Memory:
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
