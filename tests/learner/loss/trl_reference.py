"""One optimizer step by the real TRL: its own `GRPOTrainer`, whose model and sampler say what a test tells them.

The trainer is constructed by its own `__init__` on a tiny random model and driven by its own `training_step`, so
rewards → advantages → sampler ratio → loss → accumulation is all TRL's code. Three things are replaced: the
log-probs that the models would compute, the generation, and vLLM's engine.

Shapes: B sequences, T positions of the longest completion, K rewards.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tests.models import four_token_model

PAD, EOS, WORD, FIRST_ROW = 0, 1, 2, 3
"""Token ids; the prompt of row b is the one token FIRST_ROW + b, so that a shuffled row is still known."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The data of one step: groups of `num_generations` rows."""

    num_generations: int
    lengths: tuple[int, ...]
    truncated: tuple[bool, ...]
    rewards: tuple[tuple[float | None, ...], ...]
    """rewards[b][k]; None: could not be scored."""
    logprobs_BT: Tensor
    old_BT: Tensor
    ref_BT: Tensor
    sampling_BT: Tensor
    """NaN where vLLM could not say."""
    entropies_BT: Tensor

    @property
    def mask_BT(self) -> Tensor:
        positions_T = torch.arange(self.logprobs_BT.shape[1])
        return (positions_T < torch.tensor(self.lengths).unsqueeze(1)).to(self.logprobs_BT.dtype)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step came to."""

    loss: float
    gradient_BT: Tensor
    microbatches: tuple[tuple[int, ...], ...]
    """The rows of each; TRL shuffles them."""


def import_trl() -> ModuleType:
    """`trl.trainer.grpo_trainer`, imported as where vLLM is not installed: it takes ten seconds and is not used."""
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "vllm"}
    for name in hidden:
        del sys.modules[name]
    sys.modules["vllm"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("trl.trainer.grpo_trainer")
    finally:
        del sys.modules["vllm"]
        sys.modules.update(hidden)


@contextmanager
def double_precision() -> Iterator[None]:
    """Everything that TRL creates is float64: what is left of a difference is then one of the formulas."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class TrlReference:
    """Makes trainers, which may write to `folder`. TRL reads its reference model from where the model came from."""

    def __init__(self, folder: Path) -> None:
        import transformers
        from tokenizers import Tokenizer, models, pre_tokenizers

        self._module = import_trl()
        logging.getLogger("trl").setLevel(logging.ERROR)  # it warns of combinations that are unusual
        words = Tokenizer(models.WordLevel({f"t{index}": index for index in range(4)}, unk_token="t2"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        self._tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="t0", eos_token="t1", padding_side="left"
        )
        self._folder = str(folder)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            four_token_model(), dtype=torch.get_default_dtype()
        )

    def step(self, batch: Batch, *, accumulation: int = 1, **settings: Any) -> Step:
        """One optimizer step in `accumulation` micro-batches of equal size; `settings` are `GRPOConfig`'s."""
        leaf_BT = batch.logprobs_BT.clone().requires_grad_()
        trainer = self.trainer(batch, accumulation=accumulation, **settings)
        microbatches: list[tuple[int, ...]] = []
        trainer._get_per_token_logps_and_entropies = _logprobs_of(batch, leaf_BT, trainer, microbatches)
        rows = [{"prompt": "t2"} for _ in batch.lengths]
        # The gradient norm's and the schedule's business is the training loop's; this is all of it that the loss needs.
        trainer.current_gradient_accumulation_steps = accumulation
        loss = sum(float(trainer.training_step(trainer.model, rows, None)) for _ in range(accumulation))
        assert leaf_BT.grad is not None
        return Step(loss=loss, gradient_BT=leaf_BT.grad, microbatches=tuple(microbatches))

    def advantages(self, batch: Batch, **settings: Any) -> Tensor:
        """Shape (B,)."""
        trainer = self.trainer(batch, accumulation=1, **settings)
        trainer._get_per_token_logps_and_entropies = _logprobs_of(batch, batch.logprobs_BT, trainer, [])
        advantages_B = trainer._generate_and_score_completions([{"prompt": "t2"} for _ in batch.lengths])["advantages"]
        assert isinstance(advantages_B, Tensor)
        return advantages_B

    def trainer(self, batch: Batch, *, accumulation: int, **settings: Any) -> Any:
        """A real `GRPOTrainer`; without a model of its own to compute with, see `step`."""
        from datasets import Dataset
        from trl import GRPOConfig

        num_rows = len(batch.lengths)
        config = GRPOConfig(
            output_dir=self._folder,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            num_generations=batch.num_generations,
            per_device_train_batch_size=num_rows // accumulation,
            gradient_accumulation_steps=accumulation,
            **({"vllm_mode": "colocate"} | settings),
        )
        before = self._module.VLLMGeneration
        self._module.VLLMGeneration = lambda **_: None
        try:
            trainer = self._module.GRPOTrainer(
                self._model,
                [_reward_function(batch, index) for index in range(len(batch.rewards[0]))],
                config,
                train_dataset=Dataset.from_dict({"prompt": ["t2"] * num_rows}),
                processing_class=self._tokenizer,
            )
        finally:
            self._module.VLLMGeneration = before
        trainer._generate = lambda prompts: _generation(batch, sampling=config.use_vllm)
        return trainer


def with_gradient(values_BT: Tensor, leaf_BT: Tensor) -> Tensor:
    """The same values, whose gradient a leaf sees."""
    return values_BT + leaf_BT - leaf_BT.detach()


def _reward_function(batch: Batch, index: int) -> Callable[..., list[float | None]]:
    def reward(**_: Any) -> list[float | None]:
        return [row[index] for row in batch.rewards]

    reward.__name__ = f"reward_{index}"
    return reward


def _generation(batch: Batch, *, sampling: bool) -> tuple[Any, ...]:
    """What TRL's `_generate` answers."""
    prompts = [[FIRST_ROW + row] for row in range(len(batch.lengths))]
    completions = [
        [WORD] * (length - 1) + [WORD if truncated else EOS]
        for length, truncated in zip(batch.lengths, batch.truncated, strict=True)
    ]
    logprobs = None
    if sampling:
        logprobs = [
            [None if value != value else value for value in row[:length]]
            for row, length in zip(batch.sampling_BT.tolist(), batch.lengths, strict=True)
        ]
    return prompts, completions, None, [""] * len(prompts), logprobs, {}, None, []


def _logprobs_of(
    batch: Batch, leaf_BT: Tensor, trainer: Any, microbatches: list[tuple[int, ...]]
) -> Callable[..., tuple[Tensor, Tensor | None, None]]:
    """Stands for TRL's forward pass; the one that asks for entropies is the one that carries the gradient."""

    def logprobs(
        model: Any, input_ids: Tensor, *_: Any, compute_entropy: bool = False, **__: Any
    ) -> tuple[Tensor, Tensor | None, None]:
        rows = input_ids[:, 0] - FIRST_ROW
        if compute_entropy:
            microbatches.append(tuple(rows.tolist()))
            return leaf_BT[rows], with_gradient(batch.entropies_BT, leaf_BT)[rows], None
        return (batch.ref_BT if model is trainer.ref_model else batch.old_BT)[rows], None, None

    return logprobs
