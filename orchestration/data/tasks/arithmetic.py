"""Word problems of graded difficulty from a seeded generator. Pure: the same settings give the same problems."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from orchestration.data.answer_lines import AnswerLineTask
from orchestration.data.problems import Problems, answer_line, question_key
from orchestration.data.task import register
from orchestration.data.tasks.arithmetic_templates import MAX_GRADE, PEOPLE, TEMPLATES, THINGS, Template
from orchestration.errors import ConfigError, DataError
from orchestration.types import Problem

MAX_SHOTS = 8
_FRUITLESS_DRAWS = 2000
"""So many draws in a row without a new problem mean that there is none left."""

ProblemKey = tuple[str, tuple[int, ...]]
"""Template name and its numbers: two problems with one key ask the same thing with other names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Equation:
    """One step of a worked solution."""

    left: int
    operator: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.operator} {self.right} = {self.result}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Draft:
    key: ProblemKey
    question: str
    equations: tuple[Equation, ...]
    grade: int

    def problem(self, problem_id: str) -> Problem:
        answer = str(self.equations[-1].result)
        return Problem(
            problem_id=problem_id,
            question=self.question,
            reference={"final_answer": answer},
            solution="\n".join((*map(str, self.equations), answer_line(answer))),
            category=str(self.grade),
            metadata={"difficulty": self.grade},
        )


@register
class Arithmetic(AnswerLineTask):
    """Word problems of graded difficulty, made by a seeded generator; train and held-out sets are disjoint."""

    name: ClassVar[str] = "arithmetic"

    num_train: int = Field(2000, ge=1, description="Training problems.")
    num_eval: int = Field(200, ge=1, description="Held-out problems.")
    difficulty: tuple[int, ...] = Field((1,), description="Grades used, 1 (one step, small numbers) to 5.")
    num_shots: int = Field(2, ge=0, le=MAX_SHOTS, description="Worked examples in front of the question.")
    seed: int = Field(0, ge=0, description="Seed of the generator; the same for every training seed.")

    def load(self) -> Problems:
        """The sets, disjoint by question and by (template, numbers).

        The examples depend on the seed and the grades alone, the held-out set on nothing of the training set.

        Raises:
            ConfigError: a grade outside 1..5.
            DataError: the grades hold too few different problems.
        """
        grades = self.difficulty
        if not grades or not all(1 <= grade <= MAX_GRADE for grade in grades):
            raise ConfigError(
                f"data.difficulty={list(grades)}: grades go from 1 to {MAX_GRADE}, and at least one is needed"
            )
        shots = _draw_shots(self)
        evals = _draw(self, "eval", self.num_eval, taken={draft.key for draft in shots})
        train = _draw(self, "train", self.num_train, taken={draft.key for draft in (*shots, *evals)})
        _check_keys(train, evals)
        return Problems(
            train=_named(train, "train"), eval=_named(evals, "eval"), shots=_named(shots[: self.num_shots], "shot")
        )


def work_out(template: Template, numbers: Mapping[str, int]) -> tuple[Equation, ...] | None:
    """The template's steps with these numbers; None unless all results are positive integers."""
    values = dict(numbers)
    equations = []
    for step in template.steps:
        name, _, left_word, operator, right_word = step.split()
        left, right = (values[word] if word in values else int(word) for word in (left_word, right_word))
        result = _apply(left, operator, right)
        if result is None or result < 1:
            return None
        values[name] = result
        equations.append(Equation(left=left, operator=operator, right=right, result=result))
    return tuple(equations)


def _apply(left: int, operator: str, right: int) -> int | None:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left // right if operator == "/" and left % right == 0 else None


def _draw(task: Arithmetic, split: str, count: int, *, taken: Collection[ProblemKey]) -> list[_Draft]:
    """`count` drafts with distinct questions and no key in `taken`, the grades in turn."""
    rng = random.Random(f"arithmetic/{task.seed}/{split}")
    drafts: list[_Draft] = []
    questions: set[str] = set()
    while len(drafts) < count:
        grade = task.difficulty[len(drafts) % len(task.difficulty)]
        templates = [template for template in TEMPLATES if template.grade == grade]
        for _ in range(_FRUITLESS_DRAWS):
            draft = _tell(rng.choice(templates), rng)
            if draft.key not in taken and question_key(draft.question) not in questions:
                break
        else:
            raise DataError(
                f"grade {grade} has too few different problems for data.num_train={task.num_train} and "
                f"data.num_eval={task.num_eval}; lower them or widen data.difficulty"
            )
        drafts.append(draft)
        questions.add(question_key(draft.question))
    return drafts


def _draw_shots(task: Arithmetic) -> list[_Draft]:
    """Examples that show as many different templates and last operations as there are."""
    rng = random.Random(f"arithmetic/{task.seed}/shots")
    templates_in_turn = {grade: _varied(grade, rng) for grade in sorted(set(task.difficulty))}
    grades = itertools.islice(itertools.cycle(task.difficulty), MAX_SHOTS)
    return [_tell(next(templates_in_turn[grade]), rng) for grade in grades]


def _varied(grade: int, rng: random.Random) -> Iterator[Template]:
    """A grade's templates for ever, neighbours with different last operations where possible."""
    by_operation: dict[str, list[Template]] = {}
    for template in TEMPLATES:
        if template.grade == grade:
            by_operation.setdefault(template.steps[-1].split()[3], []).append(template)
    for templates in by_operation.values():
        rng.shuffle(templates)
    rounds = [
        template for row in itertools.zip_longest(*by_operation.values()) for template in row if template is not None
    ]
    while True:
        yield from rounds


def _tell(template: Template, rng: random.Random) -> _Draft:
    """The template as a story with numbers that work out."""
    equations = None
    while equations is None:
        numbers = {name: rng.randint(low, high) for name, (low, high) in template.ranges.items()}
        equations = work_out(template, numbers)
    name, other = rng.sample(PEOPLE, 2)
    question = template.text.format(name=name, other=other, things=rng.choice(THINGS), **numbers)
    return _Draft(
        key=(template.name, tuple(numbers.values())), question=question, equations=equations, grade=template.grade
    )


def _named(drafts: list[_Draft], split: str) -> tuple[Problem, ...]:
    return tuple(draft.problem(f"arithmetic/{split}/{index}") for index, draft in enumerate(drafts))


def _check_keys(train: list[_Draft], evals: list[_Draft]) -> None:
    shared = {draft.key for draft in train} & {draft.key for draft in evals}
    if shared:
        raise DataError(f"training and held-out problems share {len(shared)} stories with the same numbers")
