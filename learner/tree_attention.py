"""Attention over a packed prefix tree, block by block, so that its cost follows the tree and not its square.

A dense mask over N tokens costs N² however sparse the tree is: 6 questions × 8 completions behind one header are 2,500
tokens and 6.5 million pairs, of which 0.5 million are seen. So the tree is cut into blocks of queries, each with just
the keys that its queries can see (`plan_blocks`), and every block is one small `scaled_dot_product_attention`. On GPUs
`flex_tree_attention` does the same in one kernel.

Shapes: H heads, K key-value heads, N packed tokens, D head size; a block has q queries and k keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from learner.prefix_tree import PrefixTree, Segment

BLOCK_OVERHEAD_PAIRS = 6144
"""What one more block costs, in query-key pairs of work: on two CPU cores a call and its bookkeeping."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPlan:
    """One block: its queries are the packed range [start, stop), its keys the ranges in `key_ranges`, in order."""

    start: int
    stop: int
    key_ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A block on the device. `mask_qk` is None where the queries are the last of their keys and each sees all before
    it: plain causal attention when there are no other keys."""

    start: int
    stop: int
    key_ranges: tuple[tuple[int, int], ...]
    mask_qk: Tensor | None


def plan_blocks(segments: Sequence[Segment], *, overhead_pairs: int = BLOCK_OVERHEAD_PAIRS) -> list[BlockPlan]:
    """The cheapest cut of a forest: a subtree is one block, or its first segment is one and its children are cut alike.

    Cost of a block: queries · keys + `overhead_pairs`. Whole trees side by side are never joined. Every packed token is
    the query of exactly one block, whose keys are its queries' common ancestors and the block itself.
    """
    size = len(segments)
    children: list[list[int]] = [[] for _ in range(size)]
    for index, segment in enumerate(segments):
        if segment.parent >= 0:
            children[segment.parent].append(index)
    best, whole = [0] * size, [False] * size
    for index in range(size - 1, -1, -1):  # children stand behind their parents
        segment = segments[index]
        own, subtree = segment.stop - segment.start, segment.subtree_stop - segment.start
        together = subtree * (segment.depth + subtree) + overhead_pairs
        apart = own * (segment.depth + own) + overhead_pairs + sum(best[child] for child in children[index])
        whole[index] = not children[index] or together <= apart
        best[index] = min(together, apart)
    plans = []
    stack = [index for index in range(size) if segments[index].parent < 0]
    while stack:
        index = stack.pop()
        segment = segments[index]
        stop = segment.subtree_stop if whole[index] else segment.stop
        plans.append(BlockPlan(start=segment.start, stop=stop, key_ranges=_keys(segments, index, stop)))
        if not whole[index]:
            stack.extend(children[index])
    return sorted(plans, key=lambda plan: plan.start)


def _keys(segments: Sequence[Segment], index: int, stop: int) -> tuple[tuple[int, int], ...]:
    ranges = [(segments[index].start, stop)]
    ancestor = segments[index].parent
    while ancestor >= 0:
        start, end = segments[ancestor].start, segments[ancestor].stop
        if end == ranges[-1][0]:
            ranges[-1] = (start, ranges[-1][1])
        else:
            ranges.append((start, end))
        ancestor = segments[ancestor].parent
    return tuple(reversed(ranges))


class BlockAttention:
    """Attention over one tree by blocks; masks are made once for each window."""

    def __init__(self, tree: PrefixTree, device: torch.device) -> None:
        self._tree, self._device = tree, device
        self._plans = plan_blocks(tree.segments)
        self._blocks: dict[int | None, tuple[Block, ...]] = {}

    def __call__(
        self, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Shape (H, N, D). With `window`, a token sees itself and the `window` − 1 ancestors before it."""
        if window not in self._blocks:
            self._blocks[window] = tuple(self._block(plan, window) for plan in self._plans)
        out_HND: Tensor = _BlockAttention.apply(query_HND, key_KND, value_KND, scale, self._blocks[window])
        return out_HND

    def _block(self, plan: BlockPlan, window: int | None) -> Block:
        keys = np.concatenate([np.arange(start, stop) for start, stop in plan.key_ranges])
        sees_qk = self._tree.sees(np.arange(plan.start, plan.stop), keys, window=window)
        causal = len(keys) == plan.stop - plan.start and bool((sees_qk == np.tri(len(keys), dtype=bool)).all())
        mask_qk = None if causal else torch.from_numpy(sees_qk).to(self._device)
        return Block(start=plan.start, stop=plan.stop, key_ranges=plan.key_ranges, mask_qk=mask_qk)


class _BlockAttention(torch.autograd.Function):
    """Blocks forward and, recomputed one at a time, backward: gradients are added in place into one buffer each, where
    plain autograd would make a tensor of the whole tree's size per block."""

    @staticmethod
    def forward(
        ctx: Any, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, scale: float, blocks: tuple[Block, ...]
    ) -> Tensor:
        ctx.save_for_backward(query_HND, key_KND, value_KND)
        ctx.scale, ctx.blocks = scale, blocks
        out_HND = torch.empty_like(query_HND)
        for block in blocks:
            keys, values = _gather(key_KND, block), _gather(value_KND, block)
            out_HND[:, block.start : block.stop] = _attend(
                query_HND[:, block.start : block.stop], keys, values, scale, block
            )
        return out_HND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query_HND, key_KND, value_KND = ctx.saved_tensors
        (grad_HND,) = grads
        grad_query = torch.empty_like(query_HND)
        grad_key, grad_value = torch.zeros_like(key_KND), torch.zeros_like(value_KND)
        for block in ctx.blocks:
            rows = slice(block.start, block.stop)
            inputs = [query_HND[:, rows], _gather(key_KND, block), _gather(value_KND, block)]
            inputs = [tensor.detach().requires_grad_() for tensor in inputs]
            with torch.enable_grad():
                out = _attend(inputs[0], inputs[1], inputs[2], ctx.scale, block)
            grad_query[:, rows], keys, values = torch.autograd.grad(out, inputs, grad_HND[:, rows])
            _scatter_add(grad_key, keys, block)
            _scatter_add(grad_value, values, block)
        return grad_query, grad_key, grad_value, None, None


def _gather(tensor_KND: Tensor, block: Block) -> Tensor:
    parts = [tensor_KND[:, start:stop] for start, stop in block.key_ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _scatter_add(total_KND: Tensor, part: Tensor, block: Block) -> None:
    offset = 0
    for start, stop in block.key_ranges:
        total_KND[:, start:stop] += part[:, offset : offset + stop - start]
        offset += stop - start


def _attend(query_HqD: Tensor, key_KkD: Tensor, value_KkD: Tensor, scale: float, block: Block) -> Tensor:
    if query_HqD.device.type != "cpu" and block.mask_qk is not None:
        # No fused GPU kernel takes a mask and fewer key-value heads; the fallback would hold all the scores.
        repeats = query_HqD.shape[0] // key_KkD.shape[0]
        key_KkD, value_KkD = (tensor.repeat_interleave(repeats, dim=0) for tensor in (key_KkD, value_KkD))
    return scaled_dot_product_attention(
        query_HqD.unsqueeze(0),
        key_KkD.unsqueeze(0),
        value_KkD.unsqueeze(0),
        attn_mask=block.mask_qk,
        is_causal=block.mask_qk is None,
        scale=scale,
        enable_gqa=query_HqD.shape[0] != key_KkD.shape[0],
    ).squeeze(0)
