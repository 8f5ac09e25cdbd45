"""Word problems: the working is right, the sets are disjoint, the same seed gives the same problems."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.data.tasks.arithmetic import Arithmetic, work_out
from orchestration.data.tasks.arithmetic_templates import MAX_GRADE, PEOPLE, TEMPLATES, Template
from orchestration.errors import ConfigError, DataError
from orchestration.types import Problem

EQUATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
OPERATIONS: dict[str, Callable[[int, int], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}

configs = st.builds(
    Arithmetic,
    num_train=st.integers(1, 60),
    num_eval=st.integers(1, 30),
    difficulty=st.lists(st.integers(1, MAX_GRADE), min_size=1, max_size=3, unique=True).map(tuple),
    num_shots=st.integers(0, 8),
    seed=st.integers(0, 10_000),
)


def assert_worked_out(problem: Problem) -> None:
    *lines, last = problem.solution.splitlines()
    assert last == f"#### The final answer is {problem.reference['final_answer']}"
    assert re.fullmatch(r"[1-9]\d*", problem.reference["final_answer"])
    results = []
    for line in lines:
        match = EQUATION.fullmatch(line)
        assert match is not None, line
        left, sign, right, result = match.groups()
        assert OPERATIONS[sign](int(left), int(right)) == int(result)
        results.append(result)
    assert results[-1] == problem.reference["final_answer"]
    numbers_told = set(re.findall(r"\d+", problem.question))
    used = {number for line in lines for number in EQUATION.fullmatch(line).group(1, 3)}  # type: ignore[union-attr]
    assert used - set(results) - {"2"} <= numbers_told, "the working uses a number the question does not tell"


@settings(max_examples=30)
@given(configs)
def test_every_problem_is_worked_out_and_no_question_is_shared(config: Arithmetic) -> None:
    problems = config.load()
    assert (len(problems.train), len(problems.eval), len(problems.shots)) == (
        config.num_train,
        config.num_eval,
        config.num_shots,
    )
    sets = (problems.train, problems.eval, problems.shots)
    for problem in (problem for group in sets for problem in group):
        assert_worked_out(problem)
        assert int(problem.category) in config.difficulty
    questions = [{problem.question for problem in group} for group in sets]
    assert not questions[0] & questions[1]
    assert not (questions[0] | questions[1]) & questions[2]
    assert len(questions[0]) == config.num_train


@settings(max_examples=10)
@given(configs)
def test_the_same_seed_gives_the_same_problems(config: Arithmetic) -> None:
    assert config.load() == config.load()


def test_no_story_with_the_same_numbers_is_in_two_sets() -> None:
    """With names and things taken out of the text, story and numbers remain."""
    problems = Arithmetic(num_train=2000, num_eval=200, num_shots=8).load()

    def key(problem: Problem) -> str:
        text = re.sub("|".join(PEOPLE), "NAME", problem.question)
        for things in sorted(set(re.findall(r"[a-z]+s\b", text)), key=len, reverse=True):
            text = text.replace(things, "THINGS")
        return text

    train, held_out, shots = ({key(p) for p in group} for group in (problems.train, problems.eval, problems.shots))
    assert not train & held_out
    assert not (train | held_out) & shots


def test_held_out_problems_do_not_depend_on_the_training_set_or_the_shots() -> None:
    small = Arithmetic(num_train=10, num_eval=50, num_shots=1).load()
    large = Arithmetic(num_train=500, num_eval=50, num_shots=4).load()
    assert small.eval == large.eval
    assert large.shots[:1] == small.shots


def test_different_seeds_give_different_problems() -> None:
    first, second = (Arithmetic(num_train=50, seed=seed).load() for seed in (1, 2))
    assert {p.question for p in first.train} != {p.question for p in second.train}


def test_two_shots_show_a_sum_and_a_difference() -> None:
    for seed in range(5):
        shots = Arithmetic(num_train=1, num_eval=1, num_shots=2, seed=seed).load().shots
        assert {EQUATION.match(shot.solution).group(2) for shot in shots} == {"+", "-"}  # type: ignore[union-attr]


def test_higher_grades_take_more_steps() -> None:
    steps = {
        grade: max(len(template.steps) for template in TEMPLATES if template.grade == grade)
        for grade in range(1, MAX_GRADE + 1)
    }
    assert [steps[grade] for grade in range(1, MAX_GRADE + 1)] == [1, 1, 2, 3, 5]
    assert len({template.name for template in TEMPLATES}) == len(TEMPLATES)


@pytest.mark.parametrize(("num_train", "num_eval"), [(1, 100), (100, 1)])
def test_too_few_different_problems_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch, num_train: int, num_eval: int
) -> None:
    ages = next(template for template in TEMPLATES if template.name == "age")
    few = dataclasses.replace(ages, ranges={"a": (2, 3), "b": (2, 3)}, text="Ann is {a}. What is her age in {b} years?")
    monkeypatch.setattr("orchestration.data.tasks.arithmetic.TEMPLATES", (few,))
    with pytest.raises(
        DataError, match=rf"grade 1 has too few .* data\.num_train={num_train} and data\.num_eval={num_eval}"
    ):
        Arithmetic(num_train=num_train, num_eval=num_eval).load()


@pytest.mark.parametrize("grades", [(), (0,), (1, 6)])
def test_a_grade_that_does_not_exist_is_an_error(grades: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="grades go from 1 to 5"):
        Arithmetic(difficulty=grades).load()


def test_numbers_that_do_not_work_out_are_refused() -> None:
    template = Template(name="t", grade=3, text="", ranges={}, steps=("s = a - b", "r = s / 2"))
    assert work_out(template, {"a": 9, "b": 4}) is None, "5 / 2 is no integer"
    assert work_out(template, {"a": 3, "b": 4}) is None, "-1 is not positive"
    equations = work_out(template, {"a": 10, "b": 4})
    assert equations is not None
    assert [str(equation) for equation in equations] == ["10 - 4 = 6", "6 / 2 = 3"]
