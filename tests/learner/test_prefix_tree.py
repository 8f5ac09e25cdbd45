"""The packed tree, its attention blocks and the micro-batches: properties on random trees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.microbatches import Member, fill_microbatches, plan_ranks
from learner.prefix_tree import PrefixTree, TokenSequence, build_tree, count_distinct_tokens
from learner.tree_attention import plan_blocks

# Three token ids: beginnings are shared often, and at any depth.
tokens = st.lists(st.integers(1, 3), max_size=6).map(tuple)
sequences = st.lists(
    st.builds(
        TokenSequence, prompt_token_ids=tokens.filter(lambda prompt: len(prompt) > 0), completion_token_ids=tokens
    ),
    min_size=1,
    max_size=8,
)


def example() -> PrefixTree:
    return build_tree(
        [
            TokenSequence(prompt_token_ids=(1, 2), completion_token_ids=(3, 4, 8)),
            TokenSequence(prompt_token_ids=(1, 2), completion_token_ids=(3, 5, 8)),
            TokenSequence(prompt_token_ids=(1, 9), completion_token_ids=(3, 8)),
        ]
    )


def test_the_example_of_the_module() -> None:
    tree = example()
    assert tree.token_ids_N.tolist() == [1, 2, 3, 4, 5, 9, 3]
    assert tree.position_ids_N.tolist() == [0, 1, 2, 3, 3, 1, 2]
    assert tree.parent_N.tolist() == [-1, 0, 1, 2, 2, 0, 5]
    assert tree.exit_N.tolist() == [7, 5, 5, 4, 5, 7, 7]


def test_equal_predictions_stand_once() -> None:
    # Both completions of prompt (1, 2) begin with 3, predicted at index 1; then 4 and 5, both predicted at index 2.
    tree = example()
    assert [tree.predictor_R[row].tolist() for row in tree.rows] == [[1, 2, 3], [1, 2, 4], [5, 6]]
    assert [tree.target_R[row].tolist() for row in tree.rows] == [[3, 4, 8], [3, 5, 8], [3, 8]]
    assert len(tree.predictor_R) == 7


@given(sequences, st.booleans())
def test_every_path_reads_back_its_sequence(given_sequences: list[TokenSequence], share: bool) -> None:
    tree = build_tree(given_sequences, share=share)
    for sequence, row in zip(given_sequences, tree.rows, strict=True):
        assert tuple(tree.target_R[row]) == sequence.completion_token_ids
        for t, predictor in enumerate(tree.predictor_R[row].tolist()):
            path = tree.path(predictor)
            read_back = tuple(tree.token_ids_N[path].tolist())
            assert read_back == sequence.token_ids[: len(sequence.prompt_token_ids) + t]
            assert tree.position_ids_N[path].tolist() == list(range(len(path)))


@given(sequences, st.booleans())
def test_sees_exactly_the_ancestors(given_sequences: list[TokenSequence], share: bool) -> None:
    tree = build_tree(given_sequences, share=share)
    everything = np.arange(tree.num_tokens)
    sees = tree.sees(everything, everything)
    for index in range(tree.num_tokens):
        assert np.flatnonzero(sees[index]).tolist() == tree.path(index)


@given(sequences, st.booleans())
def test_every_distinct_beginning_stands_once(given_sequences: list[TokenSequence], share: bool) -> None:
    tree = build_tree(given_sequences, share=share)
    assert count_distinct_tokens(given_sequences, share=share) == tree.num_tokens
    inputs = [sequence.token_ids[: max(len(row), 1) + len(sequence.prompt_token_ids) - 1]
              for sequence, row in zip(given_sequences, tree.rows, strict=True)]  # fmt: skip
    beginnings = {tokens[: end + 1] for tokens in inputs for end in range(len(tokens))}
    assert tree.num_tokens == (len(beginnings) if share else sum(map(len, inputs)))


@given(sequences, st.booleans(), st.sampled_from([0, 5, 40, 10_000]))
def test_blocks_cover_each_query_once_with_just_the_keys_it_sees(
    given_sequences: list[TokenSequence], share: bool, overhead_pairs: int
) -> None:
    tree = build_tree(given_sequences, share=share)
    blocks = plan_blocks(tree.segments, overhead_pairs=overhead_pairs)
    assert [index for block in blocks for index in range(block.start, block.stop)] == list(range(tree.num_tokens))
    for block in blocks:
        keys = [key for start, stop in block.key_ranges for key in range(start, stop)]
        assert keys == sorted(set(keys))
        for query in range(block.start, block.stop):
            assert set(tree.path(query)) <= set(keys)
        assert set(keys) == {key for query in range(block.start, block.stop) for key in tree.path(query)}


def test_no_sequences_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        build_tree([])
    with pytest.raises(ValueError, match="at least one prompt token"):
        TokenSequence(prompt_token_ids=(), completion_token_ids=(1,))


groups = st.lists(sequences, max_size=5)


@given(groups, st.integers(1, 4), st.integers(1, 60), st.booleans())
def test_ranks_and_microbatches_hold_every_sequence_once(
    given_groups: list[list[TokenSequence]], num_ranks: int, max_tokens: int, share: bool
) -> None:
    counter = iter(range(1000))
    members = [[Member(index=next(counter), sequence=sequence) for sequence in group] for group in given_groups]
    plan = plan_ranks(members, num_ranks, max_tokens=max_tokens, share=share)
    assert plan == plan_ranks(members, num_ranks, max_tokens=max_tokens, share=share)
    assert len(plan) == num_ranks
    placed = [member.index for rank in plan for batch in rank for member in batch]
    assert sorted(placed) == [member.index for group in members for member in group]
    for batch in (batch for rank in plan for batch in rank):
        size = count_distinct_tokens([member.sequence for member in batch], share=share)
        assert size <= max_tokens or len(batch) == 1


def test_whole_groups_share_a_microbatch_while_they_fit() -> None:
    def group(question: int, first: int) -> tuple[Member, ...]:
        prompt = (1, 2, 3, question)  # header of 3, question of 1, then 2 × 1: the last token is not an input
        return tuple(
            Member(index=first + g, sequence=TokenSequence(prompt_token_ids=prompt, completion_token_ids=(g, 9)))
            for g in range(2)
        )

    units = [group(4, 0), group(5, 2), group(6, 4)]
    # One group alone: 3 + 1 + 2 = 6 distinct tokens; each more behind the same header adds 3.
    sizes = [[member.index for member in batch] for batch in fill_microbatches(units, max_tokens=9, share=True)]
    assert sizes == [[0, 1, 2, 3], [4, 5]]
    # 5 tokens hold only one of a group's two completions.
    alone = fill_microbatches(units[:1], max_tokens=5, share=True)
    assert [[member.index for member in batch] for batch in alone] == [[0], [1]]
