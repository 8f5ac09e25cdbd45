"""What goes into the policy, and what comes out, by sequence.

Shapes: N packed tokens of a tree, R predictions, B sequences, T completion tokens of the longest one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learner.config import AttentionKind
from learner.tree.attention import TreeAttention, make_attention
from learner.tree.device import on_device
from learner.tree.prefix_tree import PrefixTree, unpacked


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeInputs:
    """A tree on the device: what the policy's forward takes. S rows of L tokens: one of N tokens for the tree's
    attention, and one a sequence, filled up with zeros at its end, for the model's own."""

    token_ids_SL: Tensor
    position_ids_SL: Tensor
    predictor_R: Tensor
    """Among the S·L tokens."""
    target_R: Tensor
    row_BT: Tensor
    """Which prediction is completion token t of sequence b; 0 on padding."""
    mask_BT: Tensor
    """1 on completion tokens, 0 on padding; float32."""
    attention: TreeAttention | None
    """None: the model's own."""


def tree_inputs(tree: PrefixTree, device: torch.device, attention: AttentionKind = "auto") -> TreeInputs:
    """Moves a tree to the device and plans its attention.

    Args:
        tree: Packed sequences; for `own` one in which nothing is shared.
        device: Where it goes, from pinned memory to a GPU.
        attention: `own`: each sequence is a row of its own, and the model's kernels see to it.

    Returns:
        Of B sequences and T predicted tokens of the longest; `mask_BT` is 1 on those.
    """
    width = max((len(row) for row in tree.rows), default=0) or 1
    row_BT = torch.zeros(len(tree.rows), width, dtype=torch.long)
    mask_BT = torch.zeros(len(tree.rows), width)
    for b, row in enumerate(tree.rows):
        row_BT[b, : len(row)] = torch.from_numpy(row)
        mask_BT[b, : len(row)] = 1.0
    token_ids_SL, position_ids_SL, predictor_R = tree.token_ids_N[None], tree.position_ids_N[None], tree.predictor_R
    if attention == "own":
        token_ids_SL, position_ids_SL, predictor_R = unpacked(tree)
    return TreeInputs(
        token_ids_SL=on_device(token_ids_SL, device),
        position_ids_SL=on_device(position_ids_SL, device),
        predictor_R=on_device(predictor_R, device),
        target_R=on_device(tree.target_R, device),
        row_BT=on_device(row_BT, device),
        mask_BT=on_device(mask_BT, device),
        attention=None if attention == "own" else make_attention(tree, device, attention),
    )


def tree_logprobs(
    policy: Any, inputs: TreeInputs, *, temperature: float, use_adapter: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of every completion token.

    Args:
        policy: A `Policy`, or an engine that calls one.
        inputs: The tree.
        temperature: At which log-probabilities are taken.
        use_adapter: False: those of the base model.

    Returns:
        Both of shape (B, T); what stands on padding means nothing.
    """
    logprobs_R, entropy_R = policy(inputs, temperature, use_adapter)
    return logprobs_R[inputs.row_BT], entropy_R[inputs.row_BT]
