"""Sequences → one packed tree in which every shared beginning stands once. Pure: numpy only, no model.

N tokens of the tree, in preorder: a token stands behind all its ancestors, and a subtree is a contiguous range. So the
packed index of a token is also the time it is entered, and `exit_N` is where its subtree ends; k is an ancestor of q
(or q itself) exactly when k ≤ q < exit_N[k]. R predictions: distinct pairs (position, token predicted there).

Example: prompt (1, 2) with completions (3, 4) and (3, 5), and prompt (1, 9) with completion (3,):

    index     0  1  2  3  4  5  6
    token     1  2  3  4  5  9  3
    position  0  1  2  3  3  1  2        6 + 1 tokens instead of 11
    parent   -1  0  1  2  2  0  5
    exit      7  5  5  4  5  7  7

A forward and backward over the tree, in which a token attends to its ancestors, gives the same log-probabilities and
gradients as one over each sequence alone (Prefix Grouper, arXiv 2506.05433): what is not an ancestor never reaches it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rollout_server.arrays import TokenIds

IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSequence:
    """A prompt and one completion of it."""

    prompt_token_ids: TokenIds
    """Any sequence of them is taken, here and below."""
    completion_token_ids: TokenIds
    sampled: tuple[tuple[int, int], ...] | None = None
    """[start, stop) of the completion's tokens that are predicted; those between them are given, as the prompt is.
    None: all are predicted."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_token_ids", TokenIds(self.prompt_token_ids))
        object.__setattr__(self, "completion_token_ids", TokenIds(self.completion_token_ids))
        if not self.prompt_token_ids:
            raise ValueError(
                "a sequence needs at least one prompt token: the first completion token is predicted there"
            )

    @property
    def token_ids(self) -> TokenIds:
        return self.prompt_token_ids + self.completion_token_ids

    @property
    def predicted(self) -> tuple[tuple[int, int], ...]:
        """`sampled`, with a span where all are."""
        return ((0, len(self.completion_token_ids)),) if self.sampled is None else self.sampled


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A run of tokens [start, stop) without branches; its subtree is [start, subtree_stop)."""

    start: int
    stop: int
    subtree_stop: int
    depth: int
    """Position of its first token: the number of its ancestors."""
    parent: int
    """Index of the segment it continues; -1 for a root."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixTree:
    """The packed tree of B sequences, and where each of their completion tokens is predicted."""

    token_ids_N: IntArray
    position_ids_N: IntArray
    parent_N: IntArray
    """Packed index of the token before; -1 at a root."""
    exit_N: IntArray
    """One past the last token of the subtree."""
    segments: tuple[Segment, ...]
    """In preorder."""
    predictor_R: IntArray
    """Packed index of the position that predicts `target_R`."""
    target_R: IntArray
    rows: tuple[IntArray, ...]
    """rows[b][t]: which of the R predictions is the t-th predicted token of sequence b."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids_N)

    def path(self, index: int) -> list[int]:
        """Packed indices from the root to `index`."""
        path = []
        while index >= 0:
            path.append(index)
            index = int(self.parent_N[index])
        return path[::-1]

    def sees(self, queries: IntArray, keys: IntArray, *, window: int | None = None) -> NDArray[np.bool_]:
        """Which tokens attend to which.

        Args:
            queries: Packed indices.
            keys: Packed indices.
            window: Only ancestors less than so many positions back: a sliding window follows the path, not the packing.

        Returns:
            Shape (queries, keys): True where the key is an ancestor of the query, or the query itself.
        """
        q, k = queries[:, None], keys[None, :]
        sees = (k <= q) & (q < self.exit_N[keys][None, :])
        if window is not None:
            sees &= self.position_ids_N[queries][:, None] - self.position_ids_N[keys][None, :] < window
        return sees


BRANCH_STEP = 16
"""Tokens: different prompts part at multiples of it where sharing is coarse, so that those that go on alike for a word
or two make no level of their own."""


def build_tree(sequences: Sequence[TokenSequence], *, share: bool = True, coarse: bool = False) -> PrefixTree:
    """Packs the sequences; `share=False` gives each its own root (no token stands for two sequences), `coarse` shares
    as `line_up` says.

    The same sequences in the same order always give the same tree.

    Raises:
        ValueError: There are no sequences.
    """
    if not sequences:
        raise ValueError("a prefix tree needs at least one sequence")
    line = line_up(sequences, share=share, coarse=coarse)
    packer = _Packer()
    for b, length, shared in zip(line.order, line.lengths, line.shared, strict=True):
        packer.add(b, np.asarray(sequences[b].token_ids[:length], dtype=np.int64), shared)
    return packer.finish(sequences)


def unpacked(tree: PrefixTree) -> tuple[IntArray, IntArray, IntArray]:
    """A tree in which nothing is shared, as S rows of L tokens, each filled up with zeros at its end.

    Returns:
        Token ids (S, L), positions (S, L), and where each of the R predictions is made, among the S·L tokens.

    Raises:
        ValueError: Sequences share tokens.
    """
    starts = np.flatnonzero(tree.parent_N < 0)
    lengths = np.diff(starts, append=tree.num_tokens)
    row_N = np.repeat(np.arange(len(starts)), lengths)
    if not np.array_equal(tree.position_ids_N, np.arange(tree.num_tokens) - starts[row_N]):
        raise ValueError("a row a sequence needs a tree in which nothing is shared")
    token_ids_SL = np.zeros((len(starts), lengths.max()), dtype=np.int64)
    token_ids_SL[row_N, tree.position_ids_N] = tree.token_ids_N
    position_ids_SL = np.broadcast_to(np.arange(lengths.max()), token_ids_SL.shape).copy()
    index_N = row_N * lengths.max() + tree.position_ids_N
    return token_ids_SL, position_ids_SL, index_N[tree.predictor_R]


@dataclass(frozen=True, kw_only=True, slots=True)
class LineUp:
    """B sequences in the order in which they are packed. Any run of them is packed without looking at the others:
    sequences `i` to `j` have lengths[i] + Σ_(i<t≤j) (lengths[t] − shared[t]) distinct tokens."""

    order: tuple[int, ...]
    """Indices of the sequences: lexicographic by their tokens, so that neighbours share most."""
    lengths: tuple[int, ...]
    """Tokens of each that go through the model, in that order."""
    shared: tuple[int, ...]
    """How many of them stand at the beginning of the one before as well; 0 for the first."""


def line_up(sequences: Sequence[TokenSequence], *, share: bool = True, coarse: bool = False) -> LineUp:
    """Orders the sequences for packing.

    Args:
        sequences: What is packed.
        share: False: as they come, and nothing is shared.
        coarse: Share whole prompts, and of different prompts a multiple of `BRANCH_STEP`: for attention that pays for
            every level of the tree, of which completions that begin alike would make many.
    """
    # The last predicted token predicts nothing, so its position never enters the tree.
    inputs = [np.asarray(sequence.token_ids[: _num_inputs(sequence)], dtype=np.int64) for sequence in sequences]
    order = sorted(range(len(inputs)), key=lambda b: inputs[b].tolist()) if share else list(range(len(inputs)))
    shared = [0] * len(order)
    for t in range(1, len(order) if share else 0):
        shared[t] = _common_prefix(inputs[order[t - 1]], inputs[order[t]])
        if coarse:
            before, own = (sequences[b].prompt_token_ids for b in order[t - 1 : t + 1])
            shared[t] = (
                len(own) if before == own else min(shared[t], len(before), len(own)) // BRANCH_STEP * BRANCH_STEP
            )
    return LineUp(order=tuple(order), lengths=tuple(len(inputs[b]) for b in order), shared=tuple(shared))


def _num_inputs(sequence: TokenSequence) -> int:
    stop = sequence.predicted[-1][1] if sequence.predicted else 0
    return len(sequence.prompt_token_ids) + max(stop - 1, 0)


def _common_prefix(a: IntArray, b: IntArray) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


class _Packer:
    """Appends sequences in lexicographic order: what one shares with the one before, it shares with all before."""

    def __init__(self) -> None:
        self._tokens: list[IntArray] = []
        self._positions: list[IntArray] = []
        self._parents: list[IntArray] = []
        self._size = 0
        self._last_path: IntArray = np.zeros(0, dtype=np.int64)
        self._paths: dict[int, IntArray] = {}

    def add(self, b: int, tokens: IntArray, shared: int) -> None:
        fresh = np.arange(self._size, self._size + len(tokens) - shared)
        path = np.concatenate([self._last_path[:shared], fresh])
        self._tokens.append(tokens[shared:])
        self._positions.append(np.arange(shared, len(tokens)))
        self._parents.append(np.concatenate([[-1], path[:-1]])[shared:].astype(np.int64))
        self._size += len(fresh)
        self._last_path = path
        self._paths[b] = path

    def finish(self, sequences: Sequence[TokenSequence]) -> PrefixTree:
        parent_N = np.concatenate(self._parents)
        exit_N = _exits(parent_N)
        predictor_R, target_R, rows = _predictions([self._paths[b] for b in range(len(sequences))], sequences)
        position_ids_N = np.concatenate(self._positions)
        return PrefixTree(
            token_ids_N=np.concatenate(self._tokens),
            position_ids_N=position_ids_N,
            parent_N=parent_N,
            exit_N=exit_N,
            segments=tuple(_segments(parent_N, exit_N, position_ids_N)),
            predictor_R=predictor_R,
            target_R=target_R,
            rows=rows,
        )


def _exits(parent_N: IntArray) -> IntArray:
    exits = list(range(1, len(parent_N) + 1))
    parents = parent_N.tolist()
    for index in range(len(parents) - 1, -1, -1):
        parent = parents[index]
        if parent >= 0 and exits[index] > exits[parent]:
            exits[parent] = exits[index]
    return np.asarray(exits, dtype=np.int64)


def _predictions(
    paths: Sequence[IntArray], sequences: Sequence[TokenSequence]
) -> tuple[IntArray, IntArray, tuple[IntArray, ...]]:
    """Equal (position, token) pairs of different sequences become one prediction."""
    seen: dict[tuple[int, int], int] = {}
    rows = []
    for path, sequence in zip(paths, sequences, strict=True):
        before, row = len(sequence.prompt_token_ids) - 1, []
        for start, stop in sequence.predicted:
            predictors = path[before + start : before + stop].tolist()
            pairs = zip(predictors, sequence.completion_token_ids[start:stop].tolist(), strict=True)
            row += [seen.setdefault(pair, len(seen)) for pair in pairs]
        rows.append(np.asarray(row, dtype=np.int64))
    flat = np.asarray(list(seen), dtype=np.int64).reshape(len(seen), 2)
    return flat[:, 0].copy(), flat[:, 1].copy(), tuple(rows)


def _segments(parent_N: IntArray, exit_N: IntArray, position_ids_N: IntArray) -> Iterator[Segment]:
    """Cuts the packed tokens where a token has not exactly one child, or does not follow its parent."""
    size = len(parent_N)
    num_children = np.bincount(parent_N[parent_N >= 0], minlength=size)
    follows = parent_N == np.arange(size) - 1
    follows[0] = False
    single = num_children == 1
    starts = np.flatnonzero(~(follows & np.concatenate([[False], single[:-1]])))
    stops = np.concatenate([starts[1:], [size]])
    segment_of_N = np.repeat(np.arange(len(starts)), stops - starts)
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        parent = int(parent_N[start])
        yield Segment(
            start=start,
            stop=stop,
            subtree_stop=int(exit_N[start]),
            depth=int(position_ids_N[start]),
            parent=int(segment_of_N[parent]) if parent >= 0 else -1,
        )
