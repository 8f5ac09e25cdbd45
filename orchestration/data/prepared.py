"""GSM8K made ready for training: which problem goes where, what is leaked, the rows that are written. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.data.near_duplicates import NearDuplicate, near_duplicates
from orchestration.data.problems import Problems, question_key
from orchestration.data.prompts import plain_header, turns
from orchestration.data.task import PromptLayout
from orchestration.errors import DataError
from orchestration.types import Problem


@dataclass(frozen=True, kw_only=True, slots=True)
class Leakage:
    """What a test set shares with the rest."""

    num_test: int | None
    """Test questions that were looked for; None: there was no test set."""
    removed: tuple[str, ...]
    """Ids of problems whose question is a test question: they are in no file."""
    near: tuple[NearDuplicate, ...]
    """Test question and training question, or example, that are nearly the same; these stay."""
    near_validation: tuple[NearDuplicate, ...]
    """The same of validation and training questions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What is written."""

    problems: Problems
    """`eval` is the validation set."""
    repeated: tuple[str, ...]
    """Ids of problems whose question an earlier one has: they are in no file."""
    leakage: Leakage


def divide(
    problems: Sequence[Problem],
    test: Sequence[Problem] | None,
    *,
    shots: int,
    validation: float,
    seed: int,
    fixed: Sequence[Problem] | None = None,
    alike: float = 0.6,
) -> Prepared:
    """Training, validation and example problems, disjoint by question, none of them in the test set.

    Args:
        problems: all there are.
        test: what must be in none of the sets; None: unknown.
        shots: worked examples, taken out of the training part.
        validation: share of the problems, 0 to 1 exclusive, that is held out.
        seed: of the shuffle.
        fixed: take the examples from these instead.
        alike: similarity from which on two questions are reported as nearly the same.

    Raises DataError when too few problems are left.
    """
    test_keys = {question_key(problem.text) for problem in test or ()}
    removed = [problem for problem in problems if question_key(problem.text) in test_keys]
    firsts = {question_key(problem.text): problem for problem in reversed(problems)}
    repeated = [problem for problem in problems if firsts[question_key(problem.text)] is not problem]
    out = {problem.problem_id for problem in (*removed, *repeated)}
    left = [problem for problem in problems if problem.problem_id not in out]
    random.Random(f"prepare/{seed}").shuffle(left)
    num_validation = round(validation * len(left))
    held_out, rest = left[:num_validation], left[num_validation:]
    examples = list((rest if fixed is None else fixed)[:shots])
    if len(examples) < shots:
        raise DataError(f"--shots {shots}: there are only {len(examples)} examples to be had; lower it")
    shown = {question_key(problem.text) for problem in examples}
    if leaked := shown & (test_keys | {question_key(problem.text) for problem in held_out}):
        raise DataError(f"the example {min(leaked)[:100]!r} is held out; choose other examples")
    train = [problem for problem in rest if question_key(problem.text) not in shown]
    sets = Problems(train=tuple(train), eval=tuple(held_out), shots=tuple(examples))
    leakage = Leakage(
        num_test=None if test is None else len(test),
        removed=tuple(problem.problem_id for problem in removed),
        near=tuple(near_duplicates(test or (), (*train, *held_out, *examples), at_least=alike)),
        near_validation=tuple(near_duplicates(held_out, (*train, *examples), at_least=alike)),
    )
    return Prepared(problems=sets, repeated=tuple(problem.problem_id for problem in repeated), leakage=leakage)


def row(problem: Problem, shots: Sequence[Problem], layout: PromptLayout, prefix: str) -> dict[str, Any]:
    """A problem as GSM8K's `question` and `answer`, with `final_answer` and the whole `prompt`: a text where the layout
    is plain, else messages with role and content, as TRL reads them.

    Args:
        problem: With `final_answer` in its reference.
        shots: Worked examples that stand before it.
        layout: How they are written.
        prefix: What stands before an answer in `solution`; what stands before it is the working.

    Raises:
        DataError: The working holds `####`, which ends one in this format.
    """
    working = problem.solution.rpartition(prefix)[0].strip()
    if "####" in working:
        raise DataError(f"the solution of {problem.problem_id} holds '####', which ends one in this format")
    final_answer = problem.reference["final_answer"]
    if layout.style == "plain":
        prompt: Any = plain_prompt(problem, shots, layout)
    else:
        prompt = [*turns(shots, layout.instruction), {"role": "user", "content": problem.text}]
    return {
        "id": problem.problem_id,
        "question": problem.text,
        "answer": f"{working}\n#### {final_answer}".lstrip("\n"),
        "final_answer": final_answer,
        "prompt": prompt,
    }


def plain_prompt(problem: Problem, shots: Sequence[Problem], layout: PromptLayout) -> str:
    """A problem's whole prompt as plain text, for models without a chat template.

    Args:
        problem: The question.
        shots: Worked examples that stand before it, in their order.
        layout: The instruction, and the words around question and answer.

    Returns:
        Text that ends where the answer begins, without a space: that is part of the answer's first token.
    """
    joint = layout.answer_joint.rstrip(" ")  # a space is part of the answer's first token
    return f"{plain_header(shots, layout, layout.instruction)} {problem.text.strip()}\n{layout.answer_label}{joint}"
