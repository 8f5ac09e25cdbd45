"""A kernel in place of flash attention on CPUs, by the signatures and conventions of PyTorch's, in float64 inside.

What flash attention gives a sequence without keys: outputs of 0 and a log-sum-exp of +inf.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from learner.tree.flex import FlexAttention
from learner.tree.levels import LevelAttention, VarlenKernel
from learner.tree.prefix_tree import PrefixTree


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    **unused: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    check(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k)
    assert scale is not None
    assert dropout_p == 0.0
    assert not return_debug_mask
    out, logsumexp = torch.zeros_like(query), torch.full((query.shape[1], len(query)), torch.inf)
    for q, k in spans(cum_seq_q, cum_seq_k):
        if k.stop > k.start:
            scores_hqk = scored(query[q], key[k], is_causal, scale)
            out[q] = (scores_hqk.softmax(-1) @ heads_first(value[k], query)).transpose(0, 1).to(out.dtype)
            logsumexp[:, q] = scores_hqk.logsumexp(-1).float()
    rest = torch.empty(0)
    return out, logsumexp, rest, rest, rest


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    **windows: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    check(query, key, value, cum_seq_q, cum_seq_k, max_q, max_k)
    assert scale is not None
    assert dropout_p == 0.0
    assert logsumexp.shape == (query.shape[1], len(query))
    assert logsumexp.is_contiguous()
    assert logsumexp.dtype == torch.float32
    assert bool(logsumexp.isfinite().all())
    assert grad_out.shape == out.shape == query.shape
    assert grad_out.dtype == out.dtype == query.dtype
    grad_query, grad_key, grad_value = map(torch.zeros_like, (query, key, value))
    for q, k in spans(cum_seq_q, cum_seq_k):
        if k.stop == k.start:
            continue
        query_hqd, grad_hqd, out_hqd = (given[q].double().transpose(0, 1) for given in (query, grad_out, out))
        key_hkd, value_hkd = heads_first(key[k], query), heads_first(value[k], query)
        probs_hqk = torch.exp(scored(query[q], key[k], is_causal, scale) - logsumexp[:, q, None])
        through_hqk = probs_hqk * (grad_hqd @ value_hkd.mT - (grad_hqd * out_hqd).sum(-1, keepdim=True)) * scale
        grad_query[q] = (through_hqk @ key_hkd).transpose(0, 1).to(query.dtype)
        for target, grad_hkd in ((grad_key, through_hqk.mT @ query_hqd), (grad_value, probs_hqk.mT @ grad_hqd)):
            grouped = grad_hkd.unflatten(0, (key.shape[1], -1)).sum(1)
            target[k] = grouped.transpose(0, 1).to(target.dtype)
    return grad_query, grad_key, grad_value


REFERENCE = VarlenKernel(forward, backward)


def by_levels(
    tree: PrefixTree,
    kernel: VarlenKernel = REFERENCE,
    *,
    longest_queries: int = 4096,
    otherwise: Callable[[PrefixTree], Any] = lambda tree: FlexAttention(tree, torch.device("cpu")),
) -> LevelAttention:
    """Attention by levels on CPUs, in float32 too."""
    return LevelAttention(
        tree,
        torch.device("cpu"),
        otherwise=lambda: otherwise(tree),
        kernel=kernel,
        dtypes=(torch.float32, torch.bfloat16),
        longest_queries=longest_queries,
    )


def check(
    query: Tensor, key: Tensor, value: Tensor, cum_seq_q: Tensor, cum_seq_k: Tensor, max_q: int, max_k: int
) -> None:
    """What flash attention asks for."""
    for given in (query, key, value):
        assert given.ndim == 3
        assert given.stride(-1) == 1
        assert given.dtype == query.dtype
        assert given.shape[2] == query.shape[2] <= 256
        assert given.shape[2] % 8 == 0
    assert key.shape == value.shape
    assert query.shape[1] % key.shape[1] == 0
    assert len(cum_seq_q) == len(cum_seq_k) > 1
    for starts, tokens, longest in ((cum_seq_q, len(query), max_q), (cum_seq_k, len(key), max_k)):
        assert starts.dtype == torch.int32
        assert starts.is_contiguous()
        assert starts[0] == 0
        assert starts[-1] == tokens
        lengths = starts.diff()
        assert bool((lengths >= 0).all())
        assert lengths.max() <= longest


def spans(cum_seq_q: Tensor, cum_seq_k: Tensor) -> Iterator[tuple[slice, slice]]:
    q, k = cum_seq_q.tolist(), cum_seq_k.tolist()
    for s in range(len(q) - 1):
        yield slice(q[s], q[s + 1]), slice(k[s], k[s + 1])


def heads_first(given_kKD: Tensor, query: Tensor) -> Tensor:
    """Shape (H, k, D), keys and values repeated for the heads that share them."""
    return given_kKD.double().transpose(0, 1).repeat_interleave(query.shape[1] // given_kKD.shape[1], 0)


def scored(query_qHD: Tensor, key_kKD: Tensor, causal: bool, scale: float) -> Tensor:
    """Shape (H, q, k); causal from the lower right corner, as flash attention has it."""
    scores_hqk = query_qHD.double().transpose(0, 1) @ heads_first(key_kKD, query_qHD).mT * scale
    if not causal:
        return scores_hqk
    seen = torch.ones(scores_hqk.shape[1:], dtype=torch.bool).tril(scores_hqk.shape[2] - scores_hqk.shape[1])
    return scores_hqk.masked_fill(~seen, -torch.inf)
