"""Train, held-out and example problems, and the answer line that many tasks ask for."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestration.errors import DataError
from orchestration.types import Problem
from reward_service.types import ANSWER_PREFIX


def instruction(prefix: str = ANSWER_PREFIX) -> str:
    """Asks for an answer line."""
    return f"Solve the problem. End with {prefix} N."


INSTRUCTION = instruction()


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
        for name, problems in (("training", self.train), ("held-out", self.eval), ("example", self.shots)):
            if others := [one for one in problems if not isinstance(one, Problem)]:
                raise DataError(f"the {name} problems hold {others[0]!r:.100}, which is not a Problem(…)")
            if not problems and name != "example":
                raise DataError(
                    f"no {name} problems are left; lower data.num_eval and data.num_shots, or use a larger data set"
                )
        _check_disjoint({"training": self.train, "held-out": self.eval, "example": self.shots})


def answer_line(final_answer: str, prefix: str = ANSWER_PREFIX) -> str:
    """The line a worked solution ends with: `#### The final answer is 18`.

    Args:
        final_answer: As it stands in the reference.
        prefix: What an answer line begins with.
    """
    return f"{prefix} {final_answer}"


def question_key(question: str) -> str:
    """A question with case and spacing ignored: two questions with one key are the same question."""
    return " ".join(question.split()).casefold()


def split(
    train: Sequence[Problem],
    held_out: Sequence[Problem] | None,
    *,
    num_eval: int,
    num_shots: int = 0,
    num_train: int | None = None,
    shuffle: str,
) -> Problems:
    """Training, held-out and example problems of one or two lists, shuffled and disjoint by question.

    Args:
        train: what is trained on, and what the examples are taken from: the first with a worked solution.
        held_out: what is held out; None: the first `num_eval` questions of `train` are.
        num_eval: held-out problems used.
        num_shots: worked examples, taken out of training.
        num_train: training problems used; None: all.
        shuffle: seeds the order.

    Raises DataError when there are too few problems or examples.
    """
    train = _shuffled(train, shuffle)
    if held_out is None:
        firsts = {question_key(problem.text): problem for problem in reversed(train)}  # a question that recurs, once
        held_out = [problem for problem in train if firsts[question_key(problem.text)] is problem]
    else:
        held_out = _shuffled(held_out, shuffle)
    evals = held_out[:num_eval]
    rest = _without(train, evals)
    shots = [problem for problem in rest if problem.solution][:num_shots]
    if len(shots) < num_shots:
        raise DataError(
            f"data.num_shots={num_shots}, and {len(shots)} training problems have a worked solution; lower it"
        )
    return Problems(train=tuple(_without(rest, shots)[:num_train]), eval=tuple(evals), shots=tuple(shots))


def _shuffled(problems: Sequence[Problem], seed: str) -> list[Problem]:
    shuffled = list(problems)
    random.Random(seed).shuffle(shuffled)
    return shuffled


def _without(problems: Sequence[Problem], others: Sequence[Problem]) -> list[Problem]:
    taken = {question_key(problem.text) for problem in others}
    return [problem for problem in problems if question_key(problem.text) not in taken]


def _check_disjoint(sets: dict[str, tuple[Problem, ...]]) -> None:
    """Refuse a question shared by two sets (within one set it may recur) and any id used twice."""
    owner_of_question: dict[str, str] = {}
    for name, problems in sets.items():
        for key in {question_key(problem.text) for problem in problems}:
            if key in owner_of_question:
                raise DataError(f"the {owner_of_question[key]} and {name} problems share the question {key[:200]!r}")
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
