"""Whether what is asked was seen before: held-out questions in training or in the header, and nearly so. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from orchestration.data.near_duplicates import NearDuplicate, near_duplicates
from orchestration.data.problems import Problems, question_key
from orchestration.types import Problem

AT_LEAST: Final = 0.7
"""Share of three-word sequences that two questions have in common, from which on they are near-duplicates."""
_KEPT: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What two sets of questions share."""

    first: str
    second: str
    exact: Sequence[tuple[str, str]]
    """Pairs of ids with one question, case and spacing aside."""
    near: Sequence[NearDuplicate]

    @property
    def same_numbers(self) -> int:
        """Near-duplicates that ask about the same numbers."""
        return sum(pair.same_numbers for pair in self.near)

    def facts(self) -> dict[str, Any]:
        """For JSON: of the near-duplicates the most alike."""
        return {
            "first": self.first,
            "second": self.second,
            "exact": [list(pair) for pair in self.exact[:_KEPT]],
            "num_exact": len(self.exact),
            "num_near": len(self.near),
            "num_near_with_same_numbers": self.same_numbers,
            "near": [asdict(pair) for pair in self.near[:_KEPT]],
        }


def overlaps(problems: Problems) -> list[Overlap]:
    """Held-out against training, held-out against the worked examples, and those against training."""
    sets = {"held-out": problems.eval, "training": problems.train, "header": problems.shots}
    pairs = (("held-out", "training"), ("held-out", "header"), ("header", "training"))
    return [overlap(first, sets[first], second, sets[second]) for first, second in pairs]


def overlap(first: str, firsts: Sequence[Problem], second: str, seconds: Sequence[Problem]) -> Overlap:
    """What two named sets share.

    Args:
        first: Name of a set.
        firsts: Its problems.
        second: Name of another.
        seconds: Its problems.

    Returns:
        Pairs whose questions are equal but for case and blanks, and pairs alike to at least `AT_LEAST`, nearest first.
    """
    by_key = {question_key(problem.text): problem.problem_id for problem in seconds}
    exact = [(problem.problem_id, by_key[key]) for problem in firsts if (key := question_key(problem.text)) in by_key]
    same = {one for one, _ in exact}
    near = [pair for pair in near_duplicates(firsts, seconds, at_least=AT_LEAST) if pair.first not in same]
    near.sort(key=lambda pair: (-pair.similarity, not pair.same_numbers, pair.first, pair.second))
    return Overlap(first=first, second=second, exact=exact, near=near)
