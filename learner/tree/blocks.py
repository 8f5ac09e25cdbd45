"""Attention over a packed prefix tree in blocks of contiguous tokens, at a cost that follows the tree: the CPU's path.

A dense mask over N tokens costs N² however sparse the tree is: 6 questions × 8 completions behind one header are 2,500
tokens and 6.5 million pairs, of which 0.5 million are seen. But in preorder a segment and its descendants stand side by
side, so every pair that is seen lies in a rectangle without a mask: the tokens of a segment see each other causally,
and all its descendants see the whole of it.

A query's softmax is then spread over several rectangles. Each gives its part and the part's log-sum-exp, from which the
whole is put together exactly, forward and backward: softmax over a union is the average of the softmaxes, weighed by
their sums (Milakov and Gimelshein, arXiv 1805.02867; FlashAttention, arXiv 2205.14135).

Shapes: H heads, K key-value heads, N packed tokens, D head size; a block has q queries and k keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.tree.prefix_tree import PrefixTree, Segment

BLOCK_OVERHEAD_PAIRS = 6144
"""What one more block costs, in query-key pairs of work: on two CPU cores a call and putting its part to the rest."""

# PyTorch's own CPU kernel, as `scaled_dot_product_attention` calls it; called here because it also gives the
# log-sum-exp, and its backward takes that of the whole.
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPlan:
    """Queries and keys, both ranges of packed tokens. A block on the diagonal has the same of both."""

    queries: tuple[int, int]
    keys: tuple[int, int]
    masked: bool
    """False: causal on the diagonal, and off it every query sees every key."""

    @property
    def diagonal(self) -> bool:
        return self.queries == self.keys


def plan_blocks(segments: Sequence[Segment], *, overhead_pairs: int = BLOCK_OVERHEAD_PAIRS) -> list[BlockPlan]:
    """The cheapest cut of a forest into blocks. Blocks on the diagonal hold every query once, and come first.

    A subtree is either one block with a mask, or its first segment is one, the descendants looking at that segment
    another, and its children are cut alike. Cost of a block: its pairs (half of them where it is causal) +
    `overhead_pairs`. Segments stand in preorder; whole trees side by side are never joined.
    """
    size = len(segments)
    children: list[list[int]] = [[] for _ in range(size)]
    for index, segment in enumerate(segments):
        if segment.parent >= 0:
            children[segment.parent].append(index)
    best, whole = [0.0] * size, [False] * size
    for index in range(size - 1, -1, -1):  # children stand behind their parents
        segment = segments[index]
        own, below = segment.stop - segment.start, segment.subtree_stop - segment.stop
        apart = own * own / 2 + overhead_pairs
        if children[index]:
            apart += below * own + overhead_pairs + sum(best[child] for child in children[index])
            together = float((own + below) ** 2 + overhead_pairs)
            whole[index] = together <= apart
        best[index] = together if whole[index] else apart
    diagonal, below_it = [], []
    stack = [index for index in range(size) if segments[index].parent < 0]
    while stack:
        index = stack.pop()
        segment = segments[index]
        own_range, below_range = (segment.start, segment.stop), (segment.stop, segment.subtree_stop)
        if whole[index]:
            subtree = (segment.start, segment.subtree_stop)
            diagonal.append(BlockPlan(queries=subtree, keys=subtree, masked=True))
            continue
        diagonal.append(BlockPlan(queries=own_range, keys=own_range, masked=False))
        if children[index]:
            below_it.append(BlockPlan(queries=below_range, keys=own_range, masked=False))
            stack.extend(children[index])
    return diagonal + below_it


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A block as the kernel takes it."""

    queries: slice
    keys: slice
    diagonal: bool
    mask_qk: Tensor | None
    """Added to the scores: 0 where it sees, −inf where not."""
    blind_q: Tensor | None
    """Queries that see no key of the block, where there are any: the kernel gives them a log-sum-exp of 0."""

    @property
    def causal(self) -> bool:
        return self.diagonal and self.mask_qk is None


class BlockAttention:
    """Attention over one tree by blocks; masks are made once for each window."""

    def __init__(self, tree: PrefixTree) -> None:
        self._tree = tree
        self._plans = plan_blocks(tree.segments)
        self._blocks: dict[tuple[int | None, torch.dtype], tuple[Block, ...]] = {}

    def __call__(
        self, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Shape (H, N, D), D the values' head size. With `window`, a token sees itself and the `window` − 1 ancestors
        before it."""
        size = value_KND.shape[-1]
        if size != query_HND.shape[-1]:  # latent attention (MLA); the kernel knows one size, and zeros change nothing
            wide = max(size, query_HND.shape[-1])
            query_HND, key_KND, value_KND = (
                torch.nn.functional.pad(given, (0, wide - given.shape[-1])) for given in (query_HND, key_KND, value_KND)
            )
        kind = window, query_HND.dtype
        if kind not in self._blocks:
            blocks = (self._block(plan, window, query_HND.dtype) for plan in self._plans)
            self._blocks[kind] = tuple(block for block in blocks if block is not None)
        out_HND: Tensor = _BlockAttention.apply(query_HND, key_KND, value_KND, scale, self._blocks[kind])
        return out_HND if size == out_HND.shape[-1] else out_HND[..., :size]

    def _block(self, plan: BlockPlan, window: int | None, dtype: torch.dtype) -> Block | None:
        """None where a window leaves nothing of the block."""
        mask_qk = blind_q = None
        queries, keys = np.arange(*plan.queries), np.arange(*plan.keys)
        # The furthest that a query looks back here; a mask where it is further than the window.
        reach = int(self._tree.position_ids_N[queries].max() - self._tree.position_ids_N[keys].min())
        if plan.masked or (window is not None and reach >= window):
            sees_qk = torch.from_numpy(self._tree.sees(queries, keys, window=window))
            if not bool(sees_qk.any()):
                return None
            mask_qk = torch.zeros(sees_qk.shape, dtype=dtype).masked_fill_(~sees_qk, -torch.inf)
            blind_q = ~sees_qk.any(dim=1)
            blind_q = blind_q if bool(blind_q.any()) else None
        return Block(
            queries=slice(*plan.queries),
            keys=slice(*plan.keys),
            diagonal=plan.diagonal,
            mask_qk=mask_qk,
            blind_q=blind_q,
        )


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, scale: float, blocks: tuple[Block, ...]
    ) -> Tensor:
        heads, num_tokens, head_size = query_HND.shape
        # In the layout in which the model goes on with it.
        out_HND = query_HND.new_empty(num_tokens, heads, head_size).transpose(0, 1)
        logsumexp_HN = query_HND.new_empty(heads, num_tokens, dtype=torch.float32)
        for block in blocks:
            part, part_logsumexp = _attend(query_HND, key_KND, value_KND, scale, block)
            out, logsumexp = out_HND[:, block.queries], logsumexp_HN[:, block.queries]
            if block.diagonal:
                out.copy_(part)
                logsumexp.copy_(part_logsumexp)
                continue
            total = torch.logaddexp(logsumexp, part_logsumexp)
            out.mul_(torch.exp(logsumexp - total).unsqueeze(2).to(out.dtype))
            out.addcmul_(part, torch.exp(part_logsumexp - total).unsqueeze(2).to(out.dtype))
            logsumexp.copy_(total)
        ctx.save_for_backward(query_HND, key_KND, value_KND, out_HND, logsumexp_HN)
        ctx.scale, ctx.blocks = scale, blocks
        return out_HND

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query_HND, key_KND, value_KND, out_HND, logsumexp_HN = ctx.saved_tensors
        (grad_HND,) = grads
        # Blocks on the diagonal come first and hold every query and every key once: they fill, the others add.
        grad_query, grad_key, grad_value = map(torch.empty_like, (query_HND, key_KND, value_KND))
        for block in ctx.blocks:
            queries, keys = block.queries, block.keys
            parts = _backward(
                grad_HND[None, :, queries],
                query_HND[None, :, queries],
                key_KND[None, :, keys],
                value_KND[None, :, keys],
                out_HND[None, :, queries],
                logsumexp_HN[None, :, queries],
                0.0,
                block.causal,
                attn_mask=block.mask_qk,
                scale=ctx.scale,
            )
            targets = grad_query[:, queries], grad_key[:, keys], grad_value[:, keys]
            for target, part in zip(targets, parts, strict=True):
                if block.diagonal:
                    target.copy_(part[0])
                else:
                    target.add_(part[0])
        return grad_query, grad_key, grad_value, None, None


def _attend(query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, scale: float, block: Block) -> tuple[Tensor, Tensor]:
    """The block's own attention (H, q, D) and its log-sum-exp (H, q), −inf for a query that sees nothing in it."""
    part, logsumexp = _forward(
        query_HND[None, :, block.queries],
        key_KND[None, :, block.keys],
        value_KND[None, :, block.keys],
        0.0,
        block.causal,
        attn_mask=block.mask_qk,
        scale=scale,
    )
    if block.blind_q is not None:
        logsumexp.masked_fill_(block.blind_q, -torch.inf)
    return part[0], logsumexp[0]
