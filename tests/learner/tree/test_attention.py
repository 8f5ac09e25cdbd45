"""Attention over the packed tree, by blocks and by flex, against a dense mask."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch._dynamo.utils
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from learner.tree.attention import attend, make_attention
from learner.tree.blocks import BlockAttention, plan_blocks
from learner.tree.flex import MOST_GRAPHS, block_mask, block_relations, compiled
from learner.tree.prefix_tree import PrefixTree, TokenSequence, build_tree
from tests.learner.helpers import random_groups
from tests.learner.tree.test_prefix_tree import sequences

CPU = torch.device("cpu")


def tree_of(seed: int) -> PrefixTree:
    return build_tree(
        [
            TokenSequence(prompt_token_ids=group.prompt_token_ids, completion_token_ids=member.completion.token_ids)
            for group in random_groups(seed, num_groups=6)
            for member in group.members
        ]
    )


def dense(tree: PrefixTree, window: int | None) -> Tensor:
    everything = np.arange(tree.num_tokens)
    return torch.from_numpy(tree.sees(everything, everything, window=window))


def projections(tree: PrefixTree) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(heads, tree.num_tokens, 8) for heads in (4, 2, 2)]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("kind", ["blocks", "flex"])
def test_the_kernels_are_attention_with_a_dense_mask(kind: str, window: int | None) -> None:
    tree = tree_of(0)
    query, key, value = projections(tree)
    expected = scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=dense(tree, window), scale=0.3, enable_gqa=True
    )[0]
    found = make_attention(tree, CPU, kind)(query, key, value, scale=0.3, window=window)  # type: ignore[arg-type]
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [None, 5])
def test_the_blocks_have_the_gradient_of_a_dense_mask(window: int | None) -> None:
    tree = tree_of(1)
    query, key, value = inputs = [tensor.requires_grad_() for tensor in projections(tree)]
    upstream = torch.randn(4, tree.num_tokens, 8)
    expected = scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=dense(tree, window), scale=0.3, enable_gqa=True
    )[0]
    found = make_attention(tree, CPU, "blocks")(query, key, value, scale=0.3, window=window)
    for a, b in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(sequences, st.booleans(), st.sampled_from([None, 1, 3]), st.sampled_from([2, 3]))
def test_flex_blocks_leave_nothing_out_and_skip_what_they_can(
    given_sequences: list[TokenSequence], share: bool, window: int | None, size: int
) -> None:
    tree = build_tree(given_sequences, share=share)
    some, every = block_relations(tree, window=window, block_size=size)
    assert len(some) == max(2, -(-tree.num_tokens // size))
    sees = dense(tree, window).numpy()
    for q in range(len(some)):
        for k in range(len(some)):
            pairs = sees[q * size : (q + 1) * size, k * size : (k + 1) * size]
            assert some[q, k] >= pairs.any()
            assert every[q, k] <= (pairs.all() and pairs.size == size * size)
            if window is None:
                assert some[q, k] == pairs.any()


def test_the_block_mask_lists_those_blocks() -> None:
    tree = tree_of(2)  # several blocks of 128
    some, every = block_relations(tree)
    mask = block_mask(tree, CPU)
    assert len(some) > 1
    assert mask.to_dense()[0, 0].bool().tolist() == some.tolist()
    assert mask.kv_num_blocks.tolist() == [[(some & ~every).sum(1).tolist()]]


def test_a_new_length_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # Traced as for a GPU, without a GPU's code behind it.
    kernel = compiled(flex_attention, backend="aot_eager")
    monkeypatch.setattr("learner.tree.flex._kernel", lambda device_type: kernel)

    def run(*trees: PrefixTree) -> int:
        for tree in trees:
            make_attention(tree, CPU, "flex")(*projections(tree), scale=0.3, window=None)
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    before = run()
    assert run(tree_of(0)) == before + 1  # of three blocks
    others = [tree_of(seed) for seed in range(4, 12)]
    assert len({tree.num_tokens for tree in others}) > 4
    one_block = build_tree([TokenSequence(prompt_token_ids=(1, 2, 3), completion_token_ids=(4, 5))])
    assert run(*others, one_block) == before + 1


def test_beyond_the_limit_of_graphs_is_an_error_and_no_dense_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.tree.flex.MOST_GRAPHS", 1)
    torch._dynamo.reset()
    tree = tree_of(0)
    query, key, value = (tensor[None] for tensor in projections(tree))
    with torch._dynamo.config.patch(recompile_limit=1):
        kernel = compiled(flex_attention, backend="aot_eager")
        kernel(query, key, value, block_mask=block_mask(tree, CPU), enable_gqa=True)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            kernel(query, query, query, block_mask=block_mask(tree, CPU, window=3), enable_gqa=False)


def test_the_limit_of_graphs_is_that_of_every_thread() -> None:
    """What is recomputed in a GPU's backward pass is compiled in a thread of autograd's, with dynamo's own settings."""

    def kernel(given: Tensor, number: int) -> Tensor:
        return given + number

    torch._dynamo.reset()
    run = compiled(kernel, backend="eager")
    sizes = [torch.zeros([2] * rank) for rank in range(MOST_GRAPHS + 1)]
    run(sizes[0], 2)  # where the settings are ours already
    with ThreadPoolExecutor(1) as thread:
        for tensor in sizes[1:-1]:
            thread.submit(run, tensor, 2).result()
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            thread.submit(run, sizes[-1], 2).result()


@pytest.mark.slow
def test_triton_code_is_generated_for_gpus_that_are_not_here() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.learner.tree.flex_code", "80", "90"],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line, capability in zip(done.stdout.splitlines(), (80, 90), strict=True):
        found = json.loads(line)
        assert found["capability"] == found["generated_for"] == capability
        assert found["products"] == [2, 2]  # queries with keys, probabilities with values
        # One for 300 and for 1,000 tokens, one for 20.
        assert found["graphs"] == [1, 1, 2]


@settings(deadline=None)
@given(sequences, st.booleans(), st.sampled_from([None, 1, 2, 4]), st.sampled_from([0, 5, 40]), st.integers(0, 99))
def test_blocks_of_any_size_put_the_softmax_together(
    given_sequences: list[TokenSequence], share: bool, window: int | None, overhead_pairs: int, seed: int
) -> None:
    tree = build_tree(given_sequences, share=share)
    attention = BlockAttention(tree)
    attention._plans = plan_blocks(tree.segments, overhead_pairs=overhead_pairs)
    torch.manual_seed(seed)
    query, key, value = inputs = [torch.randn(heads, tree.num_tokens, 4, requires_grad=True) for heads in (4, 2, 2)]
    upstream = torch.randn(4, tree.num_tokens, 4)
    expected = scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=dense(tree, window), enable_gqa=True
    )[0]
    found = attention(query, key, value, scale=0.5, window=window)
    assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream)
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_what_a_tree_cannot_do_is_refused() -> None:
    tree = tree_of(0)
    query, key, value = (tensor[None] for tensor in projections(tree))
    attention = make_attention(tree, CPU)
    with pytest.raises(ValueError, match="needs the keyword tree_attention"):
        attend(torch.nn.Identity(), query, key, value, None)
    with pytest.raises(ValueError, match=r"attention_dropout=0\.1"):
        attend(torch.nn.Identity(), query, key, value, None, dropout=0.1, tree_attention=attention)
    with pytest.raises(ValueError, match="softcap"):
        attend(torch.nn.Identity(), query, key, value, None, tree_attention=attention, softcap=30.0)
