"""Train, held-out and example problems, and the answer line they share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestration.errors import DataError
from orchestration.types import Problem

ANSWER_PREFIX = "#### The final answer is "
"""How a completion's last line must begin (the AWS article's format for GSM8K)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problems:
    """A task's problems; no question occurs in two of the three sets.

    Raises:
        DataError: a question or an id occurs twice over the sets, or a set that must hold problems is empty.
    """

    train: tuple[Problem, ...]
    eval: tuple[Problem, ...]
    """Held out: never trained on, never shown as an example."""
    shots: tuple[Problem, ...] = ()
    """Worked examples for the prompt, in order."""

    def __post_init__(self) -> None:
        for name, problems in (("training", self.train), ("held-out", self.eval)):
            if not problems:
                raise DataError(f"no {name} problems are left; lower data.num_shots or use a larger data set")
        _check_disjoint({"training": self.train, "held-out": self.eval, "example": self.shots})


def answer_line(final_answer: str) -> str:
    """The line a worked solution ends with: `#### The final answer is 18`."""
    return f"{ANSWER_PREFIX}{final_answer}"


def question_key(question: str) -> str:
    """A question with case and spacing ignored: two questions with one key are the same question."""
    return " ".join(question.split()).casefold()


def _check_disjoint(sets: dict[str, tuple[Problem, ...]]) -> None:
    """Refuse a question shared by two sets (within one set it may recur) and any id used twice."""
    owner_of_question: dict[str, str] = {}
    for name, problems in sets.items():
        for key in {question_key(problem.question) for problem in problems}:
            if key in owner_of_question:
                raise DataError(f"the {owner_of_question[key]} and {name} problems share the question {key!r}")
            owner_of_question[key] = name
    duplicate = _first_duplicate(problem.problem_id for problems in sets.values() for problem in problems)
    if duplicate is not None:
        raise DataError(f"two problems have the id {duplicate!r}")


def _first_duplicate(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
