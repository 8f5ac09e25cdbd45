"""Questions that tell the same story in nearly the same words, also with other numbers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from orchestration.types import Problem

_WORD = re.compile(r"\d[\d,.]*|\w+")
_SHINGLE = 3
_COMMON = 0.02
"""A shingle that stands in more than this share of the questions, such as `how many #`, finds no candidates."""

Shingles = frozenset[tuple[str, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicate:
    """Two questions, by their ids, and how alike they are, 0 to 1."""

    first: str
    second: str
    similarity: float
    same_numbers: bool


def similarity(first: str, second: str) -> float:
    """How alike two texts are: the share of the three-word sequences of either that both have (Jaccard), case and
    numbers aside.

    Example: "Ann has 3 red pens." and "Ann has 4 red hats." share `ann has #` and `has # red` of four in all: 0.5.

    Returns:
        0 to 1; 1 for the same story with other numbers.
    """
    return _jaccard(_shingles(first), _shingles(second))


def near_duplicates(
    firsts: Sequence[Problem], seconds: Sequence[Problem], *, at_least: float = 0.7
) -> list[NearDuplicate]:
    """Pairs of questions that are much alike, one of each list.

    Pairs that share nothing but very common three-word sequences are not compared.

    Args:
        firsts: Problems.
        seconds: Problems.
        at_least: Their `similarity`.

    Returns:
        The most alike first.
    """
    shingles = [_shingles(problem.text) for problem in seconds]
    places: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, found in enumerate(shingles):
        for shingle in found:
            places[shingle].append(index)
    most = max(10, _COMMON * len(seconds))
    pairs = []
    for first in firsts:
        own = _shingles(first.text)
        shared = Counter(index for shingle in own if len(places[shingle]) <= most for index in places[shingle])
        alike = {index: _jaccard(own, shingles[index]) for index in shared}
        pairs += [_pair(first, seconds[index], value) for index, value in alike.items() if value >= at_least]
    return sorted(pairs, key=lambda pair: (-pair.similarity, pair.first, pair.second))


def _pair(first: Problem, second: Problem, alike: float) -> NearDuplicate:
    return NearDuplicate(
        first=first.problem_id,
        second=second.problem_id,
        similarity=round(alike, 3),
        same_numbers=_numbers(first.text) == _numbers(second.text),
    )


def _shingles(text: str) -> Shingles:
    words = ["#" if word[0].isdigit() else word.casefold() for word in _WORD.findall(text)]
    if len(words) <= _SHINGLE:
        return frozenset([tuple(words)])
    return frozenset(tuple(words[at : at + _SHINGLE]) for at in range(len(words) - _SHINGLE + 1))


def _numbers(text: str) -> list[str]:
    return [word.rstrip(".,") for word in _WORD.findall(text) if word[0].isdigit()]


def _jaccard(first: Shingles, second: Shingles) -> float:
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)
