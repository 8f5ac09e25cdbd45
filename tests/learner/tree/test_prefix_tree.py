"""The packed tree and its attention blocks: properties on random trees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learner.tree.blocks import plan_blocks
from learner.tree.prefix_tree import PrefixTree, TokenSequence, build_tree, line_up, unpacked
from rollout_server.arrays import TokenIds

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


@given(sequences)
def test_rows_read_back_every_sequence(given_sequences: list[TokenSequence]) -> None:
    tree = build_tree(given_sequences, share=False)
    token_ids_SL, position_ids_SL, predictor_R = unpacked(tree)
    assert token_ids_SL.shape == position_ids_SL.shape == (len(given_sequences), max(map(num_inputs, given_sequences)))
    for b, sequence in enumerate(given_sequences):
        length = num_inputs(sequence)
        assert TokenIds(token_ids_SL[b, :length]) == sequence.token_ids[:length]
        assert not token_ids_SL[b, length:].any()
        for t, predictor in enumerate(predictor_R[tree.rows[b]].tolist()):
            assert divmod(predictor, token_ids_SL.shape[1]) == (b, len(sequence.prompt_token_ids) - 1 + t)


def num_inputs(sequence: TokenSequence) -> int:
    """The last completion token predicts nothing."""
    return len(sequence.prompt_token_ids) + max(0, len(sequence.completion_token_ids) - 1)


def test_what_is_shared_does_not_stand_in_rows() -> None:
    with pytest.raises(ValueError, match="nothing is shared"):
        unpacked(example())


@given(sequences, st.booleans(), st.booleans())
def test_every_path_reads_back_its_sequence(given_sequences: list[TokenSequence], share: bool, coarse: bool) -> None:
    tree = build_tree(given_sequences, share=share, coarse=coarse)
    for sequence, row in zip(given_sequences, tree.rows, strict=True):
        assert TokenIds(tree.target_R[row]) == sequence.completion_token_ids
        for t, predictor in enumerate(tree.predictor_R[row].tolist()):
            path = tree.path(predictor)
            read_back = TokenIds(tree.token_ids_N[path])
            assert read_back == sequence.token_ids[: len(sequence.prompt_token_ids) + t]
            assert tree.position_ids_N[path].tolist() == list(range(len(path)))


@given(sequences, st.booleans(), st.sampled_from([None, 1, 3]))
def test_sees_exactly_the_ancestors(given_sequences: list[TokenSequence], share: bool, window: int | None) -> None:
    tree = build_tree(given_sequences, share=share)
    everything = np.arange(tree.num_tokens)
    sees = tree.sees(everything, everything, window=window)
    for index in range(tree.num_tokens):
        assert np.flatnonzero(sees[index]).tolist() == tree.path(index)[-(window or tree.num_tokens) :]


@given(sequences, st.booleans(), st.booleans(), st.integers(0, 7), st.integers(0, 7))
def test_a_run_of_the_line_up_is_a_tree_of_its_own(
    given_sequences: list[TokenSequence], share: bool, coarse: bool, first: int, last: int
) -> None:
    line = line_up(given_sequences, share=share, coarse=coarse)
    run = [given_sequences[b] for b in line.order[first : last + 1]]
    if run:
        distinct = sum(line.lengths[first : last + 1]) - sum(line.shared[first + 1 : last + 1])
        assert build_tree(run, share=share, coarse=coarse).num_tokens == distinct


def test_coarse_sharing_leaves_few_levels() -> None:
    # Three prompts behind 20 tokens, two of which go on alike for three more; completions begin alike.
    header = tuple(range(100, 120))
    prompts = [header + rest for rest in ((1, 2, 3, 4), (1, 2, 3, 5), (6,))]
    batch = [
        TokenSequence(prompt_token_ids=prompt, completion_token_ids=(7, 8, last, 9))
        for prompt in prompts
        for last in (1, 2)
    ]
    # 16 tokens of the header; the rest of a prompt once for both of its completions; 3 inputs of each completion.
    assert build_tree(batch, coarse=True).num_tokens == 16 + (8 + 8 + 5) + 6 * 3
    depths = {segment.parent: index for index, segment in enumerate(build_tree(batch, coarse=True).segments)}
    assert len(depths) == 5  # no parent, the header, three prompts
    assert build_tree(batch).num_tokens == 20 + 3 + (1 + 1 + 1) + 3 * (2 + 2)


@given(st.permutations(range(6)))
def test_order_does_not_matter(order: list[int]) -> None:
    given_sequences = [
        TokenSequence(prompt_token_ids=(1, 2), completion_token_ids=tuple(map(int, f"{index:03b}")))
        for index in range(6)
    ]
    tree, other = build_tree(given_sequences), build_tree([given_sequences[index] for index in order])
    assert tree.token_ids_N.tolist() == other.token_ids_N.tolist()
    assert tree.exit_N.tolist() == other.exit_N.tolist()


@given(sequences, st.booleans())
def test_every_distinct_beginning_stands_once(given_sequences: list[TokenSequence], share: bool) -> None:
    tree = build_tree(given_sequences, share=share)
    line = line_up(given_sequences, share=share)
    assert sum(line.lengths) - sum(line.shared) == tree.num_tokens  # known before anything is built
    inputs = [sequence.token_ids[: max(len(row), 1) + len(sequence.prompt_token_ids) - 1]
              for sequence, row in zip(given_sequences, tree.rows, strict=True)]  # fmt: skip
    beginnings = {tokens[: end + 1] for tokens in inputs for end in range(len(tokens))}
    assert tree.num_tokens == (len(beginnings) if share else sum(map(len, inputs)))


@given(sequences, st.booleans(), st.sampled_from([0, 5, 40, 10_000]))
def test_blocks_hold_every_pair_that_is_seen_once(
    given_sequences: list[TokenSequence], share: bool, overhead_pairs: int
) -> None:
    tree = build_tree(given_sequences, share=share)
    blocks = plan_blocks(tree.segments, overhead_pairs=overhead_pairs)
    everything = np.arange(tree.num_tokens)
    sees = tree.sees(everything, everything)
    found = np.zeros_like(sees, dtype=int)
    for block in blocks:
        pairs = sees[slice(*block.queries), slice(*block.keys)]
        if not block.masked:  # what the kernel does without a mask is what the tree has there
            assert (pairs == (np.tri(len(pairs), dtype=bool) if block.diagonal else True)).all()
        found[slice(*block.queries), slice(*block.keys)] += pairs
    assert (found == sees).all()
    diagonal = [block.diagonal for block in blocks]
    assert diagonal == sorted(diagonal, reverse=True)
    covered = sorted(index for block in blocks if block.diagonal for index in range(*block.queries))
    assert covered == everything.tolist()


def test_no_sequences_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        build_tree([])
    with pytest.raises(ValueError, match="at least one prompt token"):
        TokenSequence(prompt_token_ids=(), completion_token_ids=(1,))
