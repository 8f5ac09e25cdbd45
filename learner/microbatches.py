"""Who computes what: groups → ranks → micro-batches. Pure and deterministic: every rank plans all ranks alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learner.prefix_tree import TokenSequence, count_distinct_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One sequence of the step: `index` is its place in the caller's list."""

    index: int
    sequence: TokenSequence


Unit = tuple[Member, ...]
"""Members of one group that stay together: the smallest thing that is moved between ranks."""


def plan_ranks(
    groups: Sequence[Sequence[Member]], num_ranks: int, *, max_tokens: int, share: bool
) -> list[list[list[Member]]]:
    """plan[rank] is that rank's micro-batches, each a list of members for one tree.

    Groups go to the ranks by cost, dearest first, each to the rank with the least so far; with fewer groups than ranks
    the dearest are halved. Ranks may end with different numbers of micro-batches, or none.
    """
    units = [tuple(group) for group in groups if group]
    units = _halved_until(units, num_ranks, share=share)
    costs = [count_distinct_tokens([member.sequence for member in unit], share=share) for unit in units]
    loads, shares = [0] * num_ranks, [list[int]() for _ in range(num_ranks)]
    for index in sorted(range(len(units)), key=lambda i: (-costs[i], i)):
        rank = min(range(num_ranks), key=lambda r: (loads[r], r))
        loads[rank] += costs[index]
        shares[rank].append(index)
    return [
        fill_microbatches([units[index] for index in sorted(share_)], max_tokens=max_tokens, share=share)
        for share_ in shares
    ]


def fill_microbatches(units: Sequence[Unit], *, max_tokens: int, share: bool) -> list[list[Member]]:
    """Greedy, in order: whole groups while the micro-batch's distinct tokens stay within `max_tokens`.

    A group that is too large alone is cut between completions; a single sequence that is too large gets a micro-batch
    of its own, over the bound, for it cannot be cut.
    """
    batches: list[list[Member]] = []
    current: list[Member] = []
    for unit in units:
        if current and _size([*current, *unit], share=share) > max_tokens:
            batches.append(current)
            current = []
        if _size(unit, share=share) <= max_tokens:
            current = [*current, *unit]
            continue
        for member in unit:
            if current and _size([*current, member], share=share) > max_tokens:
                batches.append(current)
                current = []
            current = [*current, member]
    return [*batches, current] if current else batches


def _size(members: Sequence[Member], *, share: bool) -> int:
    return count_distinct_tokens([member.sequence for member in members], share=share)


def _halved_until(units: list[Unit], count: int, *, share: bool) -> list[Unit]:
    while len(units) < count:
        divisible = [unit for unit in units if len(unit) > 1]
        if not divisible:
            break
        largest = max(divisible, key=lambda unit: _size(unit, share=share))
        middle = (len(largest) + 1) // 2
        where = units.index(largest)
        units[where : where + 1] = [largest[:middle], largest[middle:]]
    return units
