"""Attention over a packed prefix tree by its levels, through flash attention's kernels for sequences of any length: the
path on GPUs.

A segment's tokens see each other causally, and all its descendants, which stand side by side behind it, see the whole
of it. So all segments are sequences of one causal call, and the segments of one depth, whose descendants never overlap,
are those of one more call without a mask: a header with questions with completions takes three, forward and backward.
Each call gives its part of a query's softmax and the part's log-sum-exp, from which the whole is put together exactly;
the backward calls are given the whole's (see `learner.tree.blocks`, which does the same on CPUs).

Shapes: H heads, K key-value heads, N packed tokens, D head size; a call has q queries and k keys in S sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from learner.tree.device import on_device
from learner.tree.prefix_tree import IntArray, PrefixTree, Segment

LONGEST_QUERIES = 4096
"""Descendants of one segment that the backward pass leaves to one sequence. A thread block there takes a block of keys
through all their queries: the six key blocks of a header would keep a few dozen thread blocks at work, and the rest of
the card waiting. So longer ones are cut, into `MOST_PARTS` at most, each part with a copy of the keys."""
MOST_PARTS = 4
LARGEST_HEAD = 256
DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class VarlenKernel:
    """Attention over sequences side by side, by the signatures of PyTorch's flash attention. A query without a key may
    get any infinity for its log-sum-exp."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


FLASH = VarlenKernel(torch.ops.aten._flash_attention_forward, torch.ops.aten._flash_attention_backward)
"""As `torch.nn.attention.varlen` calls them; called here because they also give the log-sum-exp, and take another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallPlan:
    """Sequences of one call, each with so many queries and keys; without keys, a gap between the others."""

    queries: tuple[int, int]
    """The packed tokens that the sequences' queries fill."""
    keys: IntArray | None
    """Packed tokens, one sequence's after the other's; None: those of the queries, which see them causally."""
    num_queries: tuple[int, ...]
    num_keys: tuple[int, ...]


def plan_calls(segments: Sequence[Segment], *, longest_queries: int = LONGEST_QUERIES) -> list[CallPlan]:
    """The calls of a forest: first that of all segments with themselves, then one a depth. Segments stand in preorder.

    Example: a header [0, 3) with questions [3, 5) and [8, 9), of which the first has completions [5, 7) and [7, 8):

        causal   queries 0-9, sequences of 3, 2, 2, 1, 1 tokens
        depth 0  queries 3-9, 6 queries with 3 keys
        depth 1  queries 5-8, 3 queries with 2 keys
    """
    depth = [0] * len(segments)
    levels: dict[int, list[Segment]] = {}
    for index, segment in enumerate(segments):
        depth[index] = depth[segment.parent] + 1 if segment.parent >= 0 else 0
        if segment.subtree_stop > segment.stop:
            levels.setdefault(depth[index], []).append(segment)
    lengths = tuple(segment.stop - segment.start for segment in segments)
    diagonals = CallPlan(queries=(0, segments[-1].stop), keys=None, num_queries=lengths, num_keys=lengths)
    return [diagonals, *(_plan_level(levels[level], longest_queries) for level in sorted(levels))]


def _plan_level(segments: Sequence[Segment], longest_queries: int) -> CallPlan:
    keys, num_queries, num_keys = [], [], []
    end = segments[0].stop
    for segment in segments:
        if segment.stop > end:
            num_queries.append(segment.stop - end)
            num_keys.append(0)
        end = segment.subtree_stop
        below = end - segment.stop
        parts = min(MOST_PARTS, -(-below // longest_queries))
        for part in range(parts):
            num_queries.append(below * (part + 1) // parts - below * part // parts)
            num_keys.append(segment.stop - segment.start)
            keys.append(np.arange(segment.start, segment.stop))
    return CallPlan(
        queries=(segments[0].stop, end),
        keys=np.concatenate(keys),
        num_queries=tuple(num_queries),
        num_keys=tuple(num_keys),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A call as the kernel takes it."""

    queries: slice
    keys_k: Tensor | None
    """None: the queries are the keys too, causally."""
    arguments: tuple[Tensor, Tensor, int, int, float, bool]
    """Where sequences start and end, queries and keys (S + 1, int32); the most of both in one; no dropout; causal."""

    @classmethod
    def of(cls, plan: CallPlan, device: torch.device) -> Call:
        starts = np.cumsum([(0, 0), *zip(plan.num_queries, plan.num_keys, strict=True)], axis=0, dtype=np.int32)
        query_starts, key_starts = (on_device(np.ascontiguousarray(column), device) for column in starts.T)
        causal = plan.keys is None
        return cls(
            queries=slice(*plan.queries),
            keys_k=None if plan.keys is None else on_device(plan.keys, device),
            # At least two: where every sequence is one query, PyTorch goes another way, made for decoding.
            arguments=(query_starts, key_starts, max(2, *plan.num_queries), max(plan.num_keys), 0.0, causal),
        )

    def taken(self, key_NKD: Tensor) -> Tensor:
        """Keys or values (k, K, D) of its sequences."""
        return key_NKD[self.queries] if self.keys_k is None else key_NKD.index_select(0, self.keys_k)


class LevelAttention:
    """Attention over one tree by its levels.

    Args:
        tree: The tree.
        device: Where it is.
        otherwise: Makes the attention that takes what the kernel does not: sliding windows shorter than the sequences,
            float32, heads of more than 256.
        kernel: What computes a call.
        dtypes: Those the kernel takes.
    """

    def __init__(
        self,
        tree: PrefixTree,
        device: torch.device,
        *,
        otherwise: Callable[[], Any],
        kernel: VarlenKernel = FLASH,
        dtypes: Sequence[torch.dtype] = DTYPES,
        longest_queries: int = LONGEST_QUERIES,
    ) -> None:
        self._longest = int(tree.position_ids_N.max()) + 1
        self._calls = tuple(
            Call.of(plan, device) for plan in plan_calls(tree.segments, longest_queries=longest_queries)
        )
        self._otherwise = cache(otherwise)
        self._kernel, self._dtypes = kernel, dtypes

    def __call__(
        self, query_HND: Tensor, key_KND: Tensor, value_KND: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """Shape (H, N, D), D the values' head size. With `window`, a token sees itself and the `window` − 1 ancestors
        before it."""
        width = max(query_HND.shape[-1], value_KND.shape[-1])
        narrow = window is not None and window < self._longest
        if narrow or width > LARGEST_HEAD or query_HND.dtype not in self._dtypes:
            other: Tensor = self._otherwise()(query_HND, key_KND, value_KND, scale=scale, window=window)
            return other
        # One size for all, a multiple of eight: zeros change nothing.
        widened = (_widened(given, -(-width // 8) * 8).transpose(0, 1) for given in (query_HND, key_KND, value_KND))
        out_NHD: Tensor = _LevelAttention.apply(*widened, scale, self._calls, self._kernel)
        return out_NHD[..., : value_KND.shape[-1]].transpose(0, 1)


class _LevelAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_NHD: Tensor,
        key_NKD: Tensor,
        value_NKD: Tensor,
        scale: float,
        calls: tuple[Call, ...],
        kernel: VarlenKernel,
    ) -> Tensor:
        attend = partial(_attend, kernel, query_NHD, key_NKD, value_NKD, scale)
        out_NHD, logsumexp_HN = attend(calls[0])
        if len(calls) > 1:
            sum_NHD = out_NHD.float()
            for call in calls[1:]:
                part, part_logsumexp = attend(call)
                out, logsumexp = sum_NHD[call.queries], logsumexp_HN[:, call.queries]
                total = torch.logaddexp(logsumexp, part_logsumexp)
                out.mul_(torch.exp(logsumexp - total).T.unsqueeze(2))
                out.addcmul_(part, torch.exp(part_logsumexp - total).T.unsqueeze(2))
                logsumexp.copy_(total)
            out_NHD = sum_NHD.to(out_NHD.dtype)
        ctx.save_for_backward(query_NHD, key_NKD, value_NKD, out_NHD, logsumexp_HN)
        ctx.scale, ctx.calls, ctx.kernel = scale, calls, kernel
        return out_NHD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query_NHD, key_NKD, value_NKD, out_NHD, logsumexp_HN = ctx.saved_tensors
        grad_NHD = grads[0].contiguous()
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=grad_NHD.device), grad_NHD.new_empty(0)
        whole: list[Tensor] = []
        for call in ctx.calls:
            parts = ctx.kernel.backward(
                grad_NHD[call.queries],
                query_NHD[call.queries],
                call.taken(key_NKD),
                call.taken(value_NKD),
                out_NHD[call.queries],
                logsumexp_HN[:, call.queries].contiguous(),
                *call.arguments,
                *no_dropout,
                scale=ctx.scale,
            )
            if not whole:  # the first call has every query and every key once
                whole = list(parts) if len(ctx.calls) == 1 else [part.float() for part in parts]
                continue
            whole[0][call.queries].add_(parts[0])
            for grad_NKD, part in zip(whole[1:], parts[1:], strict=True):
                grad_NKD.index_add_(0, call.keys_k, part.float())
        grad_query, grad_key, grad_value = (grad.to(query_NHD.dtype) for grad in whole)
        return grad_query, grad_key, grad_value, None, None, None


def _attend(
    kernel: VarlenKernel, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor, scale: float, call: Call
) -> tuple[Tensor, Tensor]:
    """The call's own attention (q, H, D), and its log-sum-exp (H, q), −inf for a query without a key."""
    keys, values = call.taken(key_NKD), call.taken(value_NKD)
    no_debug_mask = False
    part, logsumexp, *_ = kernel.forward(
        query_NHD[call.queries], keys, values, *call.arguments, no_debug_mask, scale=scale
    )
    return part, logsumexp.masked_fill_(logsumexp == torch.inf, -torch.inf)


def _widened(given: Tensor, width: int) -> Tensor:
    """A last dimension without gaps, filled up with zeros."""
    if given.shape[-1] < width:
        return torch.nn.functional.pad(given, (0, width - given.shape[-1]))
    return given if given.stride(-1) == 1 else given.contiguous()
