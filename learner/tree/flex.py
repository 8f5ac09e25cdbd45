"""Attention over a packed prefix tree in one `flex_attention` kernel: the path on GPUs.

The kernel is given the blocks of keys that each block of queries needs at all; they follow from the tree's entry and
exit times alone, so no mask of N × N is ever made. Compiled once with dynamic shapes: a new length costs nothing.

Shapes: H heads, K key-value heads, N packed tokens, D head size; Q and C blocks of queries and of keys.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import numpy as np
import torch
import torch._dynamo
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from learner.tree.device import on_device
from learner.tree.prefix_tree import PrefixTree

BLOCK_SIZE = 128
MOST_GRAPHS = 16
"""Of one function; dynamo's own limit is 8, which are those of a model with one window beside full attention."""


class FlexAttention:
    """Attention over one tree by `flex_attention`; a block mask is made once for each window."""

    def __init__(self, tree: PrefixTree, device: torch.device) -> None:
        self._tree, self._device = tree, device
        self._masks: dict[int | None, BlockMask] = {}

    def __call__(
        self, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Shape (H, N, D). With `window`, a token sees itself and the `window` − 1 ancestors before it."""
        if window not in self._masks:
            self._masks[window] = block_mask(self._tree, self._device, window=window)
        out_HND: Tensor = _kernel(self._device.type)(
            query_HND.unsqueeze(0),
            key_KND.unsqueeze(0),
            value_KND.unsqueeze(0),
            block_mask=self._masks[window],
            scale=scale,
            enable_gqa=query_HND.shape[0] != key_KND.shape[0],
        ).squeeze(0)
        return out_HND


def block_mask(tree: PrefixTree, device: torch.device, *, window: int | None = None) -> BlockMask:
    """The tree's ancestor test for the kernel, with the blocks where it is needed, where it always holds, and not."""
    some_QC, every_QC = block_relations(tree, window=window)
    partial_Q, partial_QC = _listed(some_QC & ~every_QC, device)
    full_Q, full_QC = _listed(every_QC, device)
    return BlockMask.from_kv_blocks(
        partial_Q,
        partial_QC,
        full_Q,
        full_QC,
        BLOCK_SIZE=BLOCK_SIZE,
        mask_mod=_ancestor_test(tree, device, window),
        seq_lengths=(tree.num_tokens, tree.num_tokens),
    )


def block_relations(
    tree: PrefixTree, *, window: int | None = None, block_size: int = BLOCK_SIZE
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(some, every), both (Q, C): whether some query of a block may see some key of another, and whether all see all;
    a second block of a tree of one has no tokens.

    Keys c of a block before the queries [a, b): k ≤ q holds throughout, so some pair is seen exactly when the latest
    exit is after a, and all are when the earliest exit is not before b. With a window, `some` may hold where no pair
    is seen (the test within the block decides); `every` never holds where one is not.

    Args:
        tree: N tokens, in blocks of `block_size` from the first on; the last block may be shorter.
        window: Tokens that a query sees back along its own path; None: all of it.
        block_size: Tokens.
    """
    starts = np.arange(0, tree.num_tokens, block_size)
    stops = np.minimum(starts + block_size, tree.num_tokens)
    latest_exit_C = np.maximum.reduceat(tree.exit_N, starts)
    earliest_exit_C = np.minimum.reduceat(tree.exit_N, starts)
    before_QC = stops[None, :] <= starts[:, None]
    some_QC = (before_QC & (latest_exit_C[None, :] > starts[:, None])) | np.eye(len(starts), dtype=bool)
    every_QC = before_QC & (earliest_exit_C[None, :] >= stops[:, None])
    if window is not None:
        first_position = np.minimum.reduceat(tree.position_ids_N, starts)
        last_position = np.maximum.reduceat(tree.position_ids_N, starts)
        some_QC &= first_position[:, None] - last_position[None, :] < window
        every_QC &= last_position[:, None] - first_position[None, :] < window
    # The kernel reads past the end of a last block that is not whole: only the test knows where the tokens end.
    whole = stops - starts == block_size
    every_QC &= whole[:, None] & whole[None, :]
    # At least two each way: a graph is compiled for one of a thing, and another for any number of it.
    missing = max(0, 2 - len(starts))
    return np.pad(some_QC, (0, missing)), np.pad(every_QC, (0, missing))


def _listed(blocks_QC: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """How many key blocks each query block has, and which: theirs first, in order, then the rest."""
    order_QC = np.argsort(~blocks_QC, axis=1, kind="stable")
    counts_Q = blocks_QC.sum(axis=1)
    return (
        on_device(counts_Q.astype(np.int32), device)[None, None],
        on_device(order_QC.astype(np.int32), device)[None, None],
    )


def _ancestor_test(tree: PrefixTree, device: torch.device, window: int | None) -> Callable[..., Tensor]:
    exit_N = on_device(tree.exit_N, device)
    if window is None:
        return lambda batch, head, q, k: (k <= q) & (q < exit_N[k])
    position_N = on_device(tree.position_ids_N, device)
    return lambda batch, head, q, k: (k <= q) & (q < exit_N[k]) & (position_N[q] - position_N[k] < window)


def compiled(kernel: Callable[..., Any], backend: Any = "inductor") -> Callable[..., Any]:
    """One graph for all lengths from 128 tokens on, and one for shorter trees, for which inductor has other code; for
    each window, with and without gradients. Beyond the limit of graphs an error: PyTorch would else go on by the dense
    scores of N × N."""
    graphs = torch.compile(kernel, dynamic=True, fullgraph=True, backend=backend)

    @wraps(kernel)
    def run(*given: Any, **further: Any) -> Any:
        # Dynamo's settings are a thread's own, and what is recomputed in a GPU's backward pass is in autograd's.
        if torch._dynamo.config.recompile_limit < MOST_GRAPHS:
            torch._dynamo.config.recompile_limit = MOST_GRAPHS
        return graphs(*given, **further)

    return run


@cache
def _kernel(device_type: str) -> Callable[..., Any]:
    """On CPUs uncompiled (forward only, and dense: for tests of equality)."""
    kernel: Callable[..., Any] = flex_attention
    return kernel if device_type == "cpu" else compiled(kernel)
