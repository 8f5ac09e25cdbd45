"""TRL's `GRPOTrainer`, with its own loop, loss, micro-batches and optimizer; only generation is replaced."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from learner.types import ScoredGroup
from orchestration.bench.contenders.common import LEARNING_RATE, SEED, Memory, Setting, learner_config, warm_up_batch

TRL_MICROBATCH = 8
"""`per_device_train_batch_size`, TRL's default."""


def trl(setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any) -> None:
    """Its batches are ready."""
    batches = iter([warm_up_batch(groups, setting.device), *[groups] * setting.num_rounds])
    trainer = make_trl_trainer(
        setting, groups, lambda: next(batches), [taking_turns(setting, connection, "sdpa with a padding mask")]
    )
    trainer.train()


def taking_turns(setting: Setting, connection: Any, attention: str) -> Any:
    """A trainer's callback: its first step warms up, and every further one waits for its turn and is measured."""
    from transformers import TrainerCallback

    memory: list[Memory] = []

    class TakesTurns(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self._running: Any = None
            self._measured: dict[str, float] = {}

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:  # warms up
                memory.append(Memory(setting.device))
                return
            if state.global_step == 1:
                connection.send(("ready", {"attention": attention}))
            connection.recv()
            self._running = memory[0].measured()
            self._measured = self._running.__enter__()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if self._running is not None:
                self._running.__exit__(None, None, None)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if self._running is not None and "grad_norm" in logs:
                connection.send(("done", {**self._measured, "grad_norm": float(logs["grad_norm"])}))

    return TakesTurns()


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
