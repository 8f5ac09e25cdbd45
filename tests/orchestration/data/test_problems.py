"""A set of problems refuses to be built when its parts overlap."""

from __future__ import annotations

import pytest

from orchestration.data.problems import Problems, answer_line
from orchestration.errors import DataError
from orchestration.types import Problem


def problem(name: str, question: str) -> Problem:
    return Problem(problem_id=name, question=question, reference={"final_answer": "1"})


def test_a_shared_question_is_refused_whatever_its_case_and_spacing() -> None:
    with pytest.raises(DataError, match="the training and held-out problems share the question 'how many\\?'"):
        Problems(train=(problem("a", "How many?"),), eval=(problem("b", "how  MANY?"),))


def test_an_example_may_not_be_trained_on() -> None:
    with pytest.raises(DataError, match="the training and example problems share"):
        Problems(train=(problem("a", "x"),), eval=(problem("b", "y"),), shots=(problem("c", "x"),))


def test_ids_are_unique() -> None:
    with pytest.raises(DataError, match="two problems have the id 'a'"):
        Problems(train=(problem("a", "x"),), eval=(problem("a", "y"),))


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(DataError, match="no held-out problems are left"):
        Problems(train=(problem("a", "x"),), eval=())


def test_a_question_may_recur_within_one_set() -> None:
    assert len(Problems(train=(problem("a", "x"), problem("b", "x")), eval=(problem("c", "y"),)).train) == 2


def test_the_answer_line() -> None:
    assert answer_line("18") == "#### The final answer is 18"
