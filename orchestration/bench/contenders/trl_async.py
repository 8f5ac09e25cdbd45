"""TRL's `AsyncGRPOTrainer`, which packs the sequences of a step as a tree: its own packing, forward pass, loss, loop
and optimizer; only its rollouts and its server are replaced, by samples that are ready.

Its packing happens in its data loader, before a step begins: it is not in the time that is measured. Its attention
gathers the keys and values of each segment's path and calls flash attention 3 once. Where that is not to be had, an
equal function stands in its place.
"""

from __future__ import annotations

import importlib
import queue
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from learner.types import ScoredGroup
from orchestration.bench.contenders.common import LEARNING_RATE, SEED, Setting, learner_config, warm_up_batch
from orchestration.bench.contenders.trl_trainer import taking_turns

_AHEAD = 3
"""Steps whose samples a data loader may ask for beyond those that are taken."""


def trl_async(setting: Setting, groups: tuple[ScoredGroup, ...], connection: Any) -> None:
    """Its samples are ready: all of them wait in its queue from the start."""
    attention = attention_in_place(setting.device)
    trainer = make_async_trainer(setting, groups, [taking_turns(setting, connection, attention)])
    trainer.train()


def make_async_trainer(setting: Setting, groups: Sequence[ScoredGroup], callbacks: Any) -> Any:
    """Construct TRL's `AsyncGRPOTrainer` on the same model with the same adapter, whose steps are `groups` again and
    again.

    Args:
        setting: Precision, device and checkpointing.
        groups: The batch of every step but the first, which warms up.
        callbacks: Of transformers' trainer.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer

    from learner.policy.policy import load_policy

    config = learner_config(setting, share_prefixes=True)
    policy = load_policy(setting.model_path, config, device=torch.device(setting.device), seed=SEED)
    warm_up = samples_of(policy, warm_up_batch(groups, setting.device), setting)
    samples = samples_of(policy, groups, setting)
    adapter = {name.removeprefix("model."): value.detach().clone() for name, value in policy.named_parameters()
               if value.requires_grad}  # fmt: skip
    del policy
    arguments = AsyncGRPOConfig(
        output_dir=str(Path(tempfile.gettempdir()) / "rlvr-bench-trl-async"),
        per_device_train_batch_size=len(samples),
        gradient_accumulation_steps=1,  # its loss divides by the tokens of a micro-batch: one is a step, as ours
        token_budget=-1,
        num_generations=len(groups[0].members),
        max_steps=setting.num_rounds + 1,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=setting.gradient_checkpointing,
        dtype=setting.dtype,
        bf16=False,  # no autocast: the model's own precision, as ours
        use_cpu=setting.device == "cpu",
        max_staleness=2**31,
        weight_sync_steps=2**31,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(setting.model_path, local_files_only=True)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = AsyncGRPOTrainer(
        model=setting.model_path,
        reward_funcs=no_reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["unused"]}),
        processing_class=tokenizer,
        callbacks=callbacks,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora.r,
            lora_alpha=config.lora.lora_alpha,
            lora_dropout=0.0,
            target_modules=list(config.lora.target_modules),
            bias="none",
        ),
        rollout_worker=ReadySamples([*warm_up, *samples * (setting.num_rounds + _AHEAD)]),
        weight_transfer=NoTransfer(),
    )
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(adapter.pop(name))
    assert not adapter
    return trainer


def samples_of(policy: Any, groups: Sequence[ScoredGroup], setting: Setting) -> list[Any]:
    """The step's sequences as its rollouts are, one after the other of each group.

    Its loss is taken against the sampler's log-probs, ours against the policy's own of the step's beginning: these are
    given as the sampler's.
    """
    import numpy as np
    import torch
    from trl.experimental.async_grpo.async_rollout_worker import RolloutSample

    from learner.policy.policy import tree_inputs, tree_logprobs
    from learner.step.plan import plan_step
    from learner.tree.prefix_tree import build_tree

    plan = plan_step(groups, learner_config(setting, share_prefixes=True))
    prompts = {group.prompt_token_ids: index for index, group in enumerate(groups)}
    with torch.no_grad():
        inputs = tree_inputs(build_tree(plan.sequences), torch.device(setting.device))
        logprobs_BT = tree_logprobs(policy, inputs, temperature=1.0)[0].float().cpu().numpy()
    samples = []
    for sequence, advantage, logprobs_T in zip(plan.sequences, plan.advantages, logprobs_BT, strict=True):
        before = np.zeros(len(sequence.prompt_token_ids), dtype=np.float32)
        samples.append(
            RolloutSample(
                prompt=[],
                completion=[],
                input_ids=np.asarray(sequence.token_ids),
                completion_mask=np.concatenate([before, np.ones(len(sequence.completion_token_ids))]).astype(np.int64),
                old_log_probs=np.concatenate([before, logprobs_T[: len(sequence.completion_token_ids)]]),
                advantage=advantage,
                model_version=0,
                group_id=prompts[sequence.prompt_token_ids],
                metrics={},
            )
        )
    return samples


def no_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    return [0.0] * len(completions)


class ReadySamples:
    """A rollout worker that has them all."""

    def __init__(self, samples: Sequence[Any]) -> None:
        self.rollout_buffer: queue.Queue[Any] = queue.Queue()
        self.metrics_queue: queue.Queue[Any] = queue.Queue()
        for sample in samples:
            self.rollout_buffer.put(sample)

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def update_model_version(self, model_version: int) -> None: ...

    def check_health(self, stale_after_s: float) -> None: ...


class NoTransfer:
    """There is no server to send weights to."""

    def init_weight_transfer(self) -> None: ...

    def pause(self) -> None: ...

    def send_weights(self, iterator: Iterator[Any]) -> None: ...

    def resume(self) -> None: ...

    def destroy(self) -> None: ...


def _is_had(load: Callable[[], Any]) -> bool:
    """Whether what is loaded can be had here. Without the package, the hub or a kernel for the card TRL's loader raises
    what each of these raises; which function is measured instead is said with the figure."""
    try:
        load()
    except Exception:
        return False
    return True


def attention_in_place(device: str) -> str:
    """Puts an equal function in the place of flash attention 3 where there is none; what its tree's attention is now,
    in words."""
    import torch

    packing: Any = importlib.import_module("trl.experimental.async_grpo.packing")
    if device != "cpu":
        if torch.cuda.get_device_capability() >= (9, 0) and _is_had(packing._flash_attn):
            return "gathered paths, flash attention 3"
        packing._flash_attn = lambda: SimpleNamespace(flash_attn_varlen_func=_by_pytorchs_flash_attention)
        return "gathered paths, PyTorch's flash attention in place of flash attention 3"
    packing._flash_attn = lambda: SimpleNamespace(flash_attn_varlen_func=_by_segments)
    trainer: Any = importlib.import_module("trl.experimental.async_grpo.async_grpo_trainer")
    trainer.get_peak_flops_per_device = lambda accelerator, dtype: None  # for its log; it asks CUDA for the card's name
    return "gathered paths, one sdpa a segment in place of flash attention 3"


def _by_pytorchs_flash_attention(
    query: Any, key: Any, value: Any, starts_q: Any, starts_k: Any, longest_q: int, longest_k: int, **options: Any
) -> Any:
    """By its operation, which has a gradient: `torch.nn.attention.varlen` knows grouped heads in late versions only."""
    import torch

    left, right = _window(options)
    return torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        starts_q,
        starts_k,
        longest_q,
        longest_k,
        0.0,
        True,
        False,
        scale=options["softmax_scale"],
        window_size_left=left,
        window_size_right=right,
    )[0]


def _by_segments(
    query: Any, key: Any, value: Any, starts_q: Any, starts_k: Any, longest_q: int, longest_k: int, **options: Any
) -> Any:
    """Of shape (q, H, D): each segment sees its path, itself causally."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    left = _window(options)[0]
    parts = []
    for (q, q_end), (k, k_end) in zip(_pairs(starts_q), _pairs(starts_k), strict=True):
        back = torch.arange(k_end - k - (q_end - q), k_end - k)[:, None] - torch.arange(k_end - k)[None, :]
        seen = (back >= 0) if left < 0 else (back >= 0) & (back <= left)
        whole = q_end - q == k_end - k and left < 0
        out = scaled_dot_product_attention(
            query[q:q_end].transpose(0, 1)[None],
            key[k:k_end].transpose(0, 1)[None],
            value[k:k_end].transpose(0, 1)[None],
            attn_mask=None if whole else seen,
            is_causal=whole,
            scale=options["softmax_scale"],
            enable_gqa=query.shape[1] != key.shape[1],
        )
        parts.append(out[0].transpose(0, 1))
    return torch.cat(parts)


def _window(options: dict[str, Any]) -> tuple[int, int]:
    """Flash attention's window of a causal call."""
    left, _ = options.get("window_size", (-1, -1))
    return left, 0


def _pairs(starts: Any) -> list[tuple[int, int]]:
    return list(pairwise(starts.tolist()))
