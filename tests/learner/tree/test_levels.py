"""Attention over the packed tree by its levels, against a dense mask; a reference kernel stands for flash attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close

from learner.errors import LearnerError
from learner.tree.attention import kind_on, make_attention
from learner.tree.levels import FLASH, MOST_PARTS, LevelAttention, VarlenKernel, plan_calls
from learner.tree.prefix_tree import PrefixTree, Segment, TokenSequence, build_tree
from tests.learner.tree import varlen_reference
from tests.learner.tree.test_attention import CPU, dense, tree_of
from tests.learner.tree.test_prefix_tree import sequences
from tests.learner.tree.varlen_reference import REFERENCE, by_levels


def projections(tree: PrefixTree, heads: int, groups: int, size: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value, and the gradient that comes back."""
    generator = torch.Generator().manual_seed(tree.num_tokens)
    shapes = [(count, tree.num_tokens, size) for count in (heads, heads // groups, heads // groups, heads)]
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [*(tensor.requires_grad_() for tensor in made[:3]), made[3]]


def by_dense_mask(tree: PrefixTree, given: list[Tensor]) -> list[Tensor]:
    """Output and gradients in float64."""
    inputs = [tensor.detach().double().requires_grad_() for tensor in given[:3]]
    out = scaled_dot_product_attention(
        *(tensor[None] for tensor in inputs), attn_mask=dense(tree, None), scale=0.3, enable_gqa=True
    )[0]
    return [out.detach(), *torch.autograd.grad(out, inputs, given[3].double())]


def found_by(attention: LevelAttention, given: list[Tensor]) -> list[Tensor]:
    out = attention(*given[:3], scale=0.3, window=None)
    return [out.detach(), *torch.autograd.grad(out, given[:3], given[3])]


@settings(deadline=None, max_examples=60)
@given(
    sequences,
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 2, 4096]),
    st.sampled_from([(4, 1), (4, 2), (3, 3)]),
    st.sampled_from([8, 5]),
)
def test_levels_put_the_softmax_of_any_tree_together(
    given_sequences: list[TokenSequence],
    share: bool,
    coarse: bool,
    longest_queries: int,
    heads: tuple[int, int],
    size: int,
) -> None:
    tree = build_tree(given_sequences, share=share, coarse=coarse)
    given = projections(tree, *heads, size, torch.float32)
    found = found_by(by_levels(tree, longest_queries=longest_queries), given)
    for ours, expected in zip(found, by_dense_mask(tree, given), strict=True):
        assert_close(ours, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_bfloat16_is_as_exact_as_one_rounding_for_each_part(seed: int) -> None:
    tree = tree_of(seed)
    given = projections(tree, 4, 2, 16, torch.bfloat16)
    found = found_by(by_levels(tree, longest_queries=64), given)
    for ours, expected in zip(found, by_dense_mask(tree, given), strict=True):
        assert ours.dtype == torch.bfloat16
        once = float((expected.bfloat16() - expected).norm() / expected.norm())
        # A kernel rounds its part, the sum is rounded again, and the backward pass starts from the rounded output.
        assert float((ours.double() - expected).norm() / expected.norm()) < 3 * once


def segments_of(*given: tuple[int, int, int, int]) -> list[Segment]:
    """Of (start, stop, subtree_stop, parent)."""
    return [
        Segment(start=start, stop=stop, subtree_stop=end, depth=0, parent=parent) for start, stop, end, parent in given
    ]


def test_a_header_with_questions_and_completions_takes_three_calls() -> None:
    segments = segments_of((0, 3, 9, -1), (3, 5, 8, 0), (5, 7, 7, 1), (7, 8, 8, 1), (8, 9, 9, 0))
    diagonals, header, questions = plan_calls(segments)
    assert (diagonals.queries, diagonals.keys, diagonals.num_queries) == ((0, 9), None, (3, 2, 2, 1, 1))
    assert diagonals.num_keys == diagonals.num_queries
    assert (header.queries, header.num_queries, header.num_keys) == ((3, 9), (6,), (3,))
    assert (questions.queries, questions.num_queries, questions.num_keys) == ((5, 8), (3,), (2,))
    assert header.keys is not None
    assert header.keys.tolist() == [0, 1, 2]


def test_between_two_questions_stands_a_gap_without_keys() -> None:
    segments = segments_of((0, 3, 10, -1), (3, 5, 6, 0), (5, 6, 6, 1), (6, 8, 10, 0), (8, 10, 10, 3))
    *_, questions = plan_calls(segments)
    # Queries 5; the second question's own 6 and 7; 8 and 9.
    assert (questions.queries, questions.num_queries, questions.num_keys) == ((5, 10), (1, 2, 2), (2, 0, 2))
    assert questions.keys is not None
    assert questions.keys.tolist() == [3, 4, 6, 7]


def test_the_descendants_of_a_long_header_are_cut() -> None:
    _, header = plan_calls(segments_of((0, 2, 12, -1), (2, 12, 12, 0)), longest_queries=1)
    assert MOST_PARTS == 4
    assert (header.num_queries, header.num_keys) == ((2, 3, 2, 3), (2, 2, 2, 2))
    assert header.keys is not None
    assert header.keys.tolist() == [0, 1] * 4
    _, two = plan_calls(segments_of((0, 2, 12, -1), (2, 12, 12, 0)), longest_queries=5)
    assert two.num_queries == (5, 5)


def test_a_usual_batch_is_three_calls_of_which_the_header_is_cut() -> None:
    # A header of 700 tokens, 16 questions of 60, 8 completions each of 150 with nothing in common; and the questions'
    # first word is one of four, the completions' one of two.
    header = tuple(range(1000, 1700))
    batch = [
        TokenSequence(
            prompt_token_ids=(*header, q % 4, *range(100 * q, 100 * q + 59)),
            completion_token_ids=(c % 2, *range(2000 + 200 * (8 * q + c), 2149 + 200 * (8 * q + c))),
        )
        for q in range(16)
        for c in range(8)
    ]
    tree = build_tree(batch, coarse=True)
    # The header up to a multiple of 16; its rest once a question. The last token of a completion is no input.
    assert tree.num_tokens == 688 + 16 * (12 + 60) + 128 * 149
    diagonals, first, second = plan_calls(tree.segments)
    assert len(diagonals.num_queries) == 1 + 16 + 128
    assert first.num_keys == (688,) * 4
    assert max(first.num_queries) - min(first.num_queries) <= 1
    assert second.num_keys == (72, *(0, 72) * 15)  # from question to question a gap: that question's own tokens
    # With every branch shared the same batch has two levels more.
    assert len(plan_calls(build_tree(batch).segments)) == 5


def test_each_depth_is_one_call_forward_and_one_backward() -> None:
    tree = build_tree([sequence for prompt in (1, 2) for sequence in questions_behind(prompt)])
    calls = {"forward": 0, "backward": 0}

    def counted(name: str) -> object:
        def call(*args: object, **kwargs: object) -> object:
            calls[name] += 1
            return getattr(varlen_reference, name)(*args, **kwargs)

        return call

    kernel = VarlenKernel(counted("forward"), counted("backward"))  # type: ignore[arg-type]
    found_by(by_levels(tree, kernel), projections(tree, 2, 1, 8, torch.float32))
    assert calls == {"forward": 3, "backward": 3}


def questions_behind(first: int) -> list[TokenSequence]:
    header = (first, *range(5, 30))
    return [
        TokenSequence(prompt_token_ids=(*header, question, *range(40, 60)), completion_token_ids=(completion, 7, 8))
        for question in (31, 32)
        for completion in (33, 34)
    ]


def test_the_calls_are_those_of_pytorchs_flash_attention() -> None:
    # The reference under PyTorch's own names, so that its dispatcher checks every argument.
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", varlen_reference.forward, "CPU")
        library.impl("_flash_attention_backward", varlen_reference.backward, "CPU")
        tree = tree_of(1)
        given = projections(tree, 4, 2, 16, torch.bfloat16)
        found, expected = (found_by(by_levels(tree, kernel), given) for kernel in (FLASH, REFERENCE))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("what", ["window", "dtype", "head"])
def test_flex_takes_what_flash_attention_does_not(what: str) -> None:
    tree = tree_of(0)
    made = projections(tree, 2, 1, 320 if what == "head" else 8, torch.float64 if what == "dtype" else torch.float32)
    query, key, value = (tensor.detach() for tensor in made[:3])  # flex has no backward pass on CPUs

    def never(*args: object, **kwargs: object) -> object:
        raise AssertionError("the kernel does not take it")

    window = 5 if what == "window" else None
    found = by_levels(tree, VarlenKernel(never, never))(query, key, value, scale=0.3, window=window)
    expected = scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=dense(tree, window), scale=0.3
    )
    assert_close(found, expected[0], rtol=1e-5, atol=1e-6)


def test_a_window_that_no_sequence_reaches_is_none() -> None:
    tree = tree_of(0)
    given = projections(tree, 2, 1, 8, torch.float32)
    attention = by_levels(tree)
    longest = int(tree.position_ids_N.max()) + 1
    found = attention(*given[:3], scale=0.3, window=longest)
    assert torch.equal(found, attention(*given[:3], scale=0.3, window=None))


def test_values_may_have_another_head_size() -> None:
    tree = tree_of(0)
    query, key, value, _ = projections(tree, 2, 1, 12, torch.float32)
    value = value[..., :7]
    found = by_levels(tree)(query, key, value, scale=0.3, window=None)
    expected = scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=dense(tree, None), scale=0.3)
    assert_close(found, expected[0], rtol=1e-5, atol=1e-6)


def test_the_kernel_is_chosen_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    for capability, kind in (((8, 0), "levels"), ((9, 0), "levels"), ((7, 5), "flex")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert kind_on(gpu) == kind
    with pytest.raises(LearnerError, match="a GPU since Ampere"):
        kind_on(gpu, "levels")
    with pytest.raises(LearnerError, match="attention=blocks runs on CPUs only"):
        kind_on(gpu, "blocks")
    with pytest.raises(LearnerError, match="none for cpu"):
        make_attention(tree_of(0), CPU, "levels")
    assert kind_on(CPU) == "blocks"
    assert kind_on(CPU, "flex") == "flex"
