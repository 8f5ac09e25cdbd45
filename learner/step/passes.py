"""One micro-batch on the device: what its loss needs, and the pass that computes it.

Shapes: B sequences of the micro-batch, T completion tokens of its longest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from learner.config import LearnerConfig, LossConfig, LossSettings
from learner.loss import policy_loss
from learner.policy.policy import TreeInputs, tree_inputs, tree_logprobs
from learner.step.plan import StepPlan
from learner.tree.attention import kind_on
from learner.tree.device import on_device
from learner.tree.prefix_tree import TokenSequence, build_tree
from rollout_server.arrays import TokenIds

_NOTHING = TokenSequence(prompt_token_ids=TokenIds((0,)), completion_token_ids=TokenIds((0,)))


@dataclass(kw_only=True, slots=True)
class Microbatch:
    """One tree of a step; kept for all iterations on the batch."""

    inputs: TreeInputs
    mask_BT: Tensor
    """1 on completion tokens; all 0 in a pass that adds nothing and only keeps the ranks in step."""
    advantages_B: Tensor
    sampling_logprobs_BT: Tensor
    indices: tuple[int, ...]
    """Of its sequences in the plan; empty in a pass that adds nothing."""
    num_tokens: int
    """Completion tokens in the loss."""
    num_distinct_tokens: int
    old_logprobs_BT: Tensor | None = None
    """Taken in the first iteration, whose pass computes them anyway."""
    ref_logprobs_BT: Tensor | None = None


class Microbatches(Sequence[Microbatch]):
    """Those of a step, each made when it is first wanted and then kept: on a GPU while the one before is still at work
    there.

    Args:
        indices: Of the sequences of each.
        make: Makes one.
    """

    def __init__(self, indices: Sequence[Sequence[int]], make: Callable[[Sequence[int]], Microbatch]) -> None:
        self._indices, self._make = indices, make
        self._made: dict[int, Microbatch] = {}

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, number: int) -> Microbatch: ...

    @overload
    def __getitem__(self, number: slice) -> list[Microbatch]: ...

    def __getitem__(self, number: int | slice) -> Microbatch | list[Microbatch]:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        if number not in self._made:
            self._made[number] = self._make(self._indices[number])
        return self._made[number]


@dataclass(frozen=True, kw_only=True, slots=True)
class PassResult:
    """`loss` carries the gradient; `values` are means over `num_tokens` tokens."""

    loss: Tensor
    values: Mapping[str, float]
    num_tokens: int


def make_microbatch(plan: StepPlan, indices: Sequence[int], config: LearnerConfig, device: torch.device) -> Microbatch:
    """The sequences `indices` of the plan as one tree on `device`; of none, a pass that adds nothing.

    Args:
        plan: The step's sequences, advantages and the sampler's log-probs.
        indices: Of its sequences. None of them: a rank that has nothing to do takes part in collectives all the same.
        config: Says which attention, and whether prefixes are shared.
        device: Where the tensors go.
    """
    sequences = [plan.sequences[index] for index in indices] or [_NOTHING]
    coarse = kind_on(device, config.attention) == "levels"
    tree = build_tree(sequences, share=config.share_prefixes and config.attention != "own", coarse=coarse)
    inputs = tree_inputs(tree, device, config.attention)
    width = inputs.mask_BT.shape[1]
    sampling_BT = np.zeros((len(sequences), width), dtype=np.float32)
    for b, index in enumerate(indices):
        row = plan.sampling_logprobs[index]
        sampling_BT[b, : len(row)] = row
    return Microbatch(
        inputs=inputs,
        mask_BT=inputs.mask_BT if indices else torch.zeros_like(inputs.mask_BT),
        advantages_B=on_device(torch.tensor([plan.advantages[i] for i in indices] or [0.0]), device),
        sampling_logprobs_BT=on_device(sampling_BT, device),
        indices=tuple(indices),
        num_tokens=sum(len(plan.sampling_logprobs[index]) for index in indices),
        num_distinct_tokens=tree.num_tokens,
    )


def loss_of_step(settings: LossSettings, *, max_completion_length: int | None) -> LossConfig:
    """The loss whose micro-batches add up to the step's.

    bnpo divides by the tokens of a local batch. Here that is the whole step, whatever the budget cuts it into, and so
    it is dapo. Without `max_completion_length` dr_grpo has been refused by `LearnerConfig.check_run`.
    """
    own = {name: getattr(settings, name) for name in LossSettings.model_fields}
    if settings.loss_type == "bnpo":
        own["loss_type"] = "dapo"
    if max_completion_length is not None:
        own["max_completion_length"] = max_completion_length
    return LossConfig(**own)


def run_pass(
    policy: Any,
    microbatch: Microbatch,
    plan: StepPlan,
    config: LossConfig,
    *,
    temperature: float,
    entropy_threshold: float | None,
) -> PassResult:
    """Forward, and this micro-batch's part of the step's loss. Remembers the old log-probs of a first iteration.

    Args:
        policy: A `Policy`, or an engine that calls one.
        microbatch: What goes through it.
        plan: The step's denominators.
        config: The step's loss (`loss_of_step`).
        temperature: The sampler's.
        entropy_threshold: The step's, where tokens are selected by entropy.
    """
    logprobs_BT, entropies_BT = tree_logprobs(policy, microbatch.inputs, temperature=temperature)
    if microbatch.old_logprobs_BT is None:
        microbatch.old_logprobs_BT = logprobs_BT.detach()
    loss, values = policy_loss(
        logprobs_BT,
        microbatch.advantages_B,
        microbatch.mask_BT,
        config=config,
        old_logprobs_BT=microbatch.old_logprobs_BT,
        ref_logprobs_BT=microbatch.ref_logprobs_BT,
        sampling_logprobs_BT=microbatch.sampling_logprobs_BT,
        num_items=plan.num_items,
        num_sequences=plan.num_sequences,
        entropies_BT=entropies_BT,
        entropy_threshold=entropy_threshold,
    )
    return PassResult(loss=loss, values=values, num_tokens=microbatch.num_tokens)
