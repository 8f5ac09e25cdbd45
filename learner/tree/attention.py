"""The door by which a tree's attention enters a model: `transformers`' attention interface; no model's code is touched.

Shapes: H heads, K key-value heads, N packed tokens, D head size.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from learner.config import AttentionKind
from learner.errors import LearnerError
from learner.tree.blocks import BlockAttention
from learner.tree.flex import FlexAttention
from learner.tree.levels import LevelAttention
from learner.tree.prefix_tree import PrefixTree

ATTENTION_NAME = "rlvr_prefix_tree"
"""The name under which `transformers` finds `attend`."""

_NOT_SUPPORTED = ("softcap", "s_aux", "position_bias")


class TreeAttention(Protocol):
    """Attention over one tree; `scale` multiplies the scores, `window` is a layer's sliding window in tokens."""

    def __call__(
        self, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, *, scale: float, window: int | None
    ) -> Tensor: ...


def kind_on(device: torch.device, kind: AttentionKind = "auto") -> AttentionKind:
    """What `auto` is on a device: blocks on CPUs, the only place where they run; on GPUs levels where there is flash
    attention, else flex.

    Raises:
        LearnerError: The kind does not run there.
    """
    if kind == "auto":
        if device.type == "cpu":
            return "blocks"
        return "levels" if _has_flash(device) else "flex"
    if kind == "blocks" and device.type != "cpu":
        raise LearnerError(f"attention=blocks runs on CPUs only, not on {device}: use auto, levels or flex")
    if kind == "levels" and not _has_flash(device):
        raise LearnerError(
            f"attention=levels needs flash attention, of which PyTorch has none for {device}: a GPU since Ampere; use "
            "auto"
        )
    return kind


def make_attention(tree: PrefixTree, device: torch.device, kind: AttentionKind = "auto") -> TreeAttention:
    """The attention of one tree on `device`, the only place where its kernel is chosen.

    Raises:
        LearnerError: The kind does not run there.
    """
    kind = kind_on(device, kind)
    if kind == "levels":
        return LevelAttention(tree, device, otherwise=lambda: FlexAttention(tree, device))
    return FlexAttention(tree, device) if kind == "flex" else BlockAttention(tree)


def _has_flash(device: torch.device) -> bool:
    if torch.version.hip:  # its log-sum-exp is of another shape there
        return False
    if device.type != "cuda" or not torch.backends.cuda.is_flash_attention_available():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    tree_attention: TreeAttention | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """What a layer of `transformers` calls, with the arguments that it gives.

    Args:
        query: (1, H, N, D).
        key, value: (1, K, N, D).
        scaling: of the products; None: 1/√D.
        sliding_window: tokens that a token sees at the most, itself among them; None: all its ancestors.
        tree_attention: arrives as a keyword of the model's forward.
        attention_mask: not looked at: the tree says who sees whom.

    Returns:
        (1, N, H, D), and no weights.

    Raises:
        ValueError: `tree_attention` is missing, or the layer asks for what a tree's attention does not do: dropout,
            soft-capping, sinks, a position bias.
    """
    if tree_attention is None:
        raise ValueError(f"the attention {ATTENTION_NAME!r} needs the keyword tree_attention in the model's forward")
    asked = [name for name in _NOT_SUPPORTED if further.get(name) is not None]
    if dropout or asked:
        what = f"attention_dropout={dropout}" if dropout else f"attention with {', '.join(asked)}"
        raise ValueError(f"the model has {what}, which the prefix tree's attention does not support")
    out_HND = tree_attention(
        query.squeeze(0),
        key.squeeze(0),
        value.squeeze(0),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
    )
    return out_HND.transpose(0, 1).unsqueeze(0), None
