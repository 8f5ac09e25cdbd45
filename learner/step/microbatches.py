"""Who computes what: sequences → ranks → micro-batches. Pure and deterministic: every rank plans all ranks alike.

Sequences stand in the order of the packed tree (`line_up`), so every cut between neighbours has a known price: the
tokens that they share are computed on both sides of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from learner.tree.prefix_tree import LineUp, TokenSequence, line_up

PASS_OVERHEAD_TOKENS = 16
"""What one more forward and backward pass costs, in tokens; decides between cuts that lose the same sharing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkModel:
    """What a token costs: as much as any other in the linear layers, and in attention as its position says."""

    positions_per_token: int
    """Ancestors whose attention costs as much as one token in all else: of a layer, its parameters a head size and
    head, halved. Qwen2.5-0.5B has 8,000, 7B 32,000."""

    def __call__(self, num_tokens: int) -> int:
        """Work of the first so many tokens of a sequence, in 2·`positions_per_token`-ths of a token without ancestors:
        each has as many as stand before it."""
        return num_tokens * (2 * self.positions_per_token + num_tokens - 1)


def plan_ranks(
    sequences: Sequence[TokenSequence],
    num_ranks: int,
    *,
    max_tokens: int,
    share: bool,
    coarse: bool = False,
    rows: bool = False,
    cost: Callable[[int], int] = int,
) -> list[list[list[int]]]:
    """plan[rank] is that rank's micro-batches, each the indices of the sequences of one tree.

    Ranks get neighbouring sequences, so that the dearest rank has as little work as possible; within a rank the
    micro-batches hold at most `max_tokens` distinct tokens each and lose the least sharing. A sequence that is
    too large alone gets a micro-batch of its own, over the bound, for it cannot be cut. Ranks may end with different
    numbers of micro-batches, or none.

    Args:
        sequences: Of the whole step.
        num_ranks: Among how many they are divided.
        max_tokens: Distinct tokens of a micro-batch.
        share: Whether common beginnings are computed once.
        coarse: Whether only those are that attention by levels shares (`line_up`).
        rows: Whether each sequence is a row, filled up to the longest of its micro-batch; nothing is shared then.
        cost: Work of the first so many tokens of a sequence, see `WorkModel`; by default their number.
    """
    if rows:
        return _plan_rows(line_up(sequences, share=False), num_ranks, max_tokens=max_tokens)
    line = line_up(sequences, share=share, coarse=coarse)
    return [
        [
            list(line.order[start:stop])
            for start, stop in cut_into_microbatches(line, first, last, max_tokens=max_tokens)
        ]
        for first, last in cut_into_ranks(line, num_ranks, cost)
    ]


def cut_into_ranks(line: LineUp, num_ranks: int, cost: Callable[[int], int] = int) -> list[tuple[int, int]]:
    """Ranges of the line, one a rank, whose largest work is the least possible.

    Tokens that a range shares with the one before it are its own work, too: those up to position p cost `cost(p)`.

    Args:
        line: Sequences in an order in which neighbours share most.
        num_ranks: At least 1; more than sequences leave ranks without any.
        cost: Work of so many tokens from the root on; grows with them.

    Returns:
        A range [first, last) of the line for each rank.
    """
    whole = [cost(length) for length in line.lengths]
    saved = [cost(shared) for shared in line.shared]
    low, high = max(whole, default=0), sum(whole)
    while low < high:
        middle = (low + high) // 2
        if len(_filled(whole, saved, middle)) <= num_ranks:
            high = middle
        else:
            low = middle + 1
    ranges = _filled(whole, saved, high)
    end = len(line.order)
    return ranges + [(end, end)] * (num_ranks - len(ranges))


def _filled(whole: Sequence[int], saved: Sequence[int], bound: int) -> list[tuple[int, int]]:
    """The fewest ranges of at most `bound` work each; no sequence has more alone."""
    ranges, start, size = [], 0, 0
    for t, (work, shared) in enumerate(zip(whole, saved, strict=True)):
        if t > start and size + work - shared > bound:
            ranges.append((start, t))
            start, size = t, work
        else:
            size += work - (shared if t > start else 0)
    return [*ranges, (start, len(whole))] if whole else []


def cut_into_microbatches(line: LineUp, first: int, last: int, *, max_tokens: int) -> list[tuple[int, int]]:
    """Ranges of line[first:last] within `max_tokens` distinct tokens each, at the least total price of the cuts.

    Shortest path over the cuts: least[t] is the least price of line[first:t], a cut before i costing shared[i] tokens
    computed twice and `PASS_OVERHEAD_TOKENS`.

    Args:
        line: As of `cut_into_ranks`.
        first: Of the range that is cut.
        last: Behind it.
        max_tokens: Distinct tokens; a sequence that alone has more is a range of its own.

    Returns:
        Ranges [first, last) of the line, in its order.
    """
    least, came_from = {first: 0}, dict[int, int]()
    for t in range(first + 1, last + 1):
        size, best = 0, None
        for i in range(t - 1, first - 1, -1):
            # Taking line[i] in as well: it is now the first, and what follows it shares with it.
            size += line.lengths[i] - (line.shared[i + 1] if i + 1 < t else 0)
            if size > max_tokens and i < t - 1:
                break
            price = least[i] + (line.shared[i] + PASS_OVERHEAD_TOKENS if i > first else 0)
            if best is None or price < best:
                best, came_from[t] = price, i
        assert best is not None
        least[t] = best
    ranges, end = [], last
    while end > first:
        ranges.append((came_from[end], end))
        end = came_from[end]
    return ranges[::-1]


def _plan_rows(line: LineUp, num_ranks: int, *, max_tokens: int) -> list[list[list[int]]]:
    """The longest first: what is filled up is little, and ranks that take turns have about the same."""
    order = sorted(line.order, key=lambda index: (-line.lengths[index], index))
    most = -(-len(order) // num_ranks)  # no rank is left without a row
    microbatches = []
    while order:
        count = min(most, max(1, max_tokens // max(1, line.lengths[order[0]])))
        microbatches.append(order[:count])
        order = order[count:]
    return [microbatches[rank::num_ranks] for rank in range(num_ranks)]
