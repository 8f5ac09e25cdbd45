"""What stands in the place of flash attention 3 in TRL's asynchronous trainer is equal to it."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from orchestration.bench.contenders.trl_async import _by_pytorchs_flash_attention, _by_segments
from tests.learner.tree import varlen_reference


@pytest.mark.parametrize("window", [(-1, -1), (2, 0)])
def test_one_call_a_segment_is_one_call(window: tuple[int, int]) -> None:
    # Two segments of 3 and 2 tokens; the second behind a path of 4.
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(tokens, heads, 8, generator=generator) for tokens, heads in ((5, 4), (9, 2), (9, 2))
    )
    starts_q, starts_k = torch.tensor([0, 3, 5], dtype=torch.int32), torch.tensor([0, 3, 9], dtype=torch.int32)
    arguments = query, key, value, starts_q, starts_k, 3, 6
    found = _by_segments(*arguments, softmax_scale=0.3, causal=True, window_size=window)
    expected = []
    for (q, q_end), (k, k_end) in (((0, 3), (0, 3)), ((3, 5), (3, 9))):
        scores = varlen_reference.scored(query[q:q_end], key[k:k_end], True, 0.3)
        if window[0] >= 0:
            back = torch.arange(k_end - k - (q_end - q), k_end - k)[:, None] - torch.arange(k_end - k)
            scores = scores.masked_fill(back > window[0], -torch.inf)
        expected.append((scores.softmax(-1) @ varlen_reference.heads_first(value[k:k_end], query)).transpose(0, 1))
    assert_close(found, torch.cat(expected).float(), rtol=1e-5, atol=1e-6)


def test_pytorchs_flash_attention_is_called_as_it_is_declared() -> None:
    query = torch.randn(4, 2, 8)
    starts = torch.tensor([0, 4], dtype=torch.int32)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", varlen_reference.forward, "CPU")
        found = _by_pytorchs_flash_attention(query, query, query, starts, starts, 4, 4, softmax_scale=0.3, causal=True)
    assert_close(found, _by_segments(query, query, query, starts, starts, 4, 4, softmax_scale=0.3))
