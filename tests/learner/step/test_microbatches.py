"""Ranks and micro-batches: every sequence once, within the budget, at the least price."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from learner.step.microbatches import (
    PASS_OVERHEAD_TOKENS,
    WorkModel,
    cut_into_microbatches,
    cut_into_ranks,
    plan_ranks,
)
from learner.tree.prefix_tree import LineUp, TokenSequence, build_tree, line_up
from tests.learner.tree.test_prefix_tree import sequences


def sizes(line: LineUp, ranges: list[tuple[int, int]]) -> list[int]:
    return [sum(line.lengths[start:stop]) - sum(line.shared[start + 1 : stop]) for start, stop in ranges]


def all_cuts(count: int, max_parts: int) -> list[list[tuple[int, int]]]:
    found = []
    for parts in range(1, min(count, max_parts) + 1):
        for inner in combinations(range(1, count), parts - 1):
            edges = [0, *inner, count]
            found.append(list(pairwise(edges)))
    return found


@given(sequences, st.integers(1, 4), st.integers(1, 60), st.booleans(), st.booleans())
def test_ranks_and_microbatches_hold_every_sequence_once(
    given_sequences: list[TokenSequence], num_ranks: int, max_tokens: int, share: bool, coarse: bool
) -> None:
    plan = plan_ranks(given_sequences, num_ranks, max_tokens=max_tokens, share=share, coarse=coarse)
    assert plan == plan_ranks(given_sequences, num_ranks, max_tokens=max_tokens, share=share, coarse=coarse)
    assert len(plan) == num_ranks
    assert sorted(index for rank in plan for batch in rank for index in batch) == list(range(len(given_sequences)))
    for batch in (batch for rank in plan for batch in rank):
        size = build_tree([given_sequences[index] for index in batch], share=share, coarse=coarse).num_tokens
        assert size <= max_tokens or len(batch) == 1


@settings(deadline=None)
@given(sequences, st.integers(1, 3))
def test_no_other_cut_gives_the_dearest_rank_less(given_sequences: list[TokenSequence], num_ranks: int) -> None:
    line = line_up(given_sequences)
    dearest = max(sizes(line, cut_into_ranks(line, num_ranks)))
    assert dearest == min(max(sizes(line, cuts)) for cuts in all_cuts(len(line.order), num_ranks))


@settings(deadline=None)
@given(sequences, st.integers(1, 3), st.integers(1, 9))
def test_no_other_cut_gives_the_dearest_rank_less_work(
    given_sequences: list[TokenSequence], num_ranks: int, positions_per_token: int
) -> None:
    line, model = line_up(given_sequences), WorkModel(positions_per_token=positions_per_token)

    def work(cut: tuple[int, int]) -> int:
        # Of each distinct token: one for all else, and its ancestors' share; counted over the cut's own tree.
        tree = build_tree([given_sequences[b] for b in line.order[slice(*cut)]])
        return int((2 * positions_per_token + 2 * tree.position_ids_N).sum())

    dearest = max(map(work, (cut for cut in cut_into_ranks(line, num_ranks, model) if cut[0] < cut[1])))
    assert dearest == min(max(map(work, cuts)) for cuts in all_cuts(len(line.order), num_ranks))


def test_a_long_sequence_is_worth_more_than_its_tokens() -> None:
    # 2,000 tokens in one sequence and 3,000 in thirty, nothing shared. By tokens two ranks have 2,500 each. At 1,000
    # positions a token the long one's attention costs as much as its tokens, and 1 in 20 is added to the short ones':
    # 4,000 against 3,150, so it stays alone.
    lengths = [2000] + [100] * 30
    batch = [
        TokenSequence(prompt_token_ids=(b,) * length, completion_token_ids=(0,)) for b, length in enumerate(lengths)
    ]

    def counts(cost: Callable[[int], int]) -> list[int]:
        return [sum(map(len, rank)) for rank in plan_ranks(batch, 2, max_tokens=10_000, share=True, cost=cost)]

    assert counts(int) == [6, 25]
    assert counts(WorkModel(positions_per_token=1000)) == [1, 30]


@settings(deadline=None)
@given(sequences, st.integers(4, 40))
def test_no_other_cut_within_the_budget_loses_less(given_sequences: list[TokenSequence], max_tokens: int) -> None:
    line, count = line_up(given_sequences), len(given_sequences)

    def price(cuts: list[tuple[int, int]]) -> int:
        return sum(line.shared[start] + PASS_OVERHEAD_TOKENS for start, _ in cuts[1:])

    def fits(cuts: list[tuple[int, int]]) -> bool:
        pairs = zip(cuts, sizes(line, cuts), strict=True)
        return all(size <= max_tokens or stop - start == 1 for (start, stop), size in pairs)

    chosen = cut_into_microbatches(line, 0, count, max_tokens=max_tokens)
    assert fits(chosen)
    assert price(chosen) == min(price(cuts) for cuts in all_cuts(count, count) if fits(cuts))


def group(question: int, num_completions: int = 2) -> list[TokenSequence]:
    """Behind a header of 3 and a question of 1: completions of one input token each (their last is none)."""
    prompt = (1, 2, 3, question)
    return [TokenSequence(prompt_token_ids=prompt, completion_token_ids=(g, 9)) for g in range(num_completions)]


def test_cuts_fall_between_groups_where_they_can() -> None:
    # One group alone: 3 + 1 + 2 = 6 distinct tokens; each more behind the same header adds 3. A budget of 9 holds one
    # and a half groups: cutting inside one would compute header and question again, between two the header only.
    batch = group(4) + group(5) + group(6)
    assert plan_ranks(batch, 1, max_tokens=9, share=True) == [[[0, 1, 2, 3], [4, 5]]]
    # 5 tokens hold only one of a group's two completions.
    assert plan_ranks(batch[:2], 1, max_tokens=5, share=True) == [[[0], [1]]]


def test_a_group_is_halved_for_two_ranks() -> None:
    assert plan_ranks(group(4, 4), 2, max_tokens=100, share=True) == [[[0, 1]], [[2, 3]]]
    assert plan_ranks(group(4, 1), 2, max_tokens=100, share=True) == [[[0]], []]


@given(sequences, st.integers(1, 4), st.integers(1, 60))
def test_rows_hold_every_sequence_once(given_sequences: list[TokenSequence], num_ranks: int, max_tokens: int) -> None:
    plan = plan_ranks(given_sequences, num_ranks, max_tokens=max_tokens, share=True, rows=True)
    assert len(plan) == num_ranks
    assert sorted(index for rank in plan for batch in rank for index in batch) == list(range(len(given_sequences)))
    lengths = line_up(given_sequences, share=False).lengths
    for batch in (batch for rank in plan for batch in rank):
        assert len(batch) * max(lengths[index] for index in batch) <= max_tokens or len(batch) == 1
    counts = [len(rank) for rank in plan]
    assert max(counts) - min(counts) <= 1
    assert min(counts) > 0 or len(given_sequences) < num_ranks or max(counts) == 1


def test_rows_of_like_length_go_together() -> None:
    # Five input tokens each but the third, which has nine: alone in its micro-batch of up to ten tokens.
    batch = [TokenSequence(prompt_token_ids=(1,) * length, completion_token_ids=(2,)) for length in (5, 5, 9, 5, 5)]
    assert plan_ranks(batch, 1, max_tokens=10, share=False, rows=True) == [[[2], [0, 1], [3, 4]]]
    assert plan_ranks(batch, 2, max_tokens=10, share=False, rows=True) == [[[2], [3, 4]], [[0, 1]]]
