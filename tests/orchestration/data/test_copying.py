"""The toy task."""

from __future__ import annotations

import pytest

from orchestration.data.copying import make_copy_task
from orchestration.errors import DataError
from orchestration.settings.config import CopyData


def test_sizes_disjointness_and_answers() -> None:
    problems = make_copy_task(CopyData(num_train=100, num_eval=40, num_shots=3))
    assert (len(problems.train), len(problems.eval), len(problems.shots)) == (100, 40, 3)
    for problem in (*problems.train, *problems.eval, *problems.shots):
        assert problem.final_answer in problem.question
        assert problem.solution == f"#### The final answer is {problem.final_answer}"
    assert problems == make_copy_task(CopyData(num_train=100, num_eval=40, num_shots=3))
    assert problems != make_copy_task(CopyData(num_train=100, num_eval=40, num_shots=3, seed=1))


def test_too_many_problems_for_the_numbers_there_are() -> None:
    with pytest.raises(DataError, match=r"60 different problems with data\.max_number=9, and 258 are needed"):
        make_copy_task(CopyData(max_number=9))
