"""The toy task."""

from __future__ import annotations

import pytest

from orchestration.data.tasks.copying import Copy
from orchestration.errors import DataError


def test_sizes_disjointness_and_answers() -> None:
    problems = Copy(num_train=100, num_eval=40, num_shots=3).load()
    assert (len(problems.train), len(problems.eval), len(problems.shots)) == (100, 40, 3)
    for problem in (*problems.train, *problems.eval, *problems.shots):
        assert problem.reference["final_answer"] in problem.question
        assert problem.solution == f"#### The final answer is {problem.reference['final_answer']}"
    assert problems == Copy(num_train=100, num_eval=40, num_shots=3).load()
    assert problems != Copy(num_train=100, num_eval=40, num_shots=3, seed=1).load()


def test_too_many_problems_for_the_numbers_there_are() -> None:
    with pytest.raises(DataError, match=r"60 different problems with data\.max_number=9, and 258 are needed"):
        Copy(max_number=9).load()
