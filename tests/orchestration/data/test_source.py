"""Prompts in the order of training."""

from __future__ import annotations

from orchestration.data.source import PromptSource
from orchestration.types import BuiltPrompt, Problem
from rollout_server.types import Prompt


def problem(name: str, answer: str = "1") -> Problem:
    return Problem(problem_id=name, question=name, reference={"final_answer": answer})


def built(problem: Problem) -> BuiltPrompt:
    return BuiltPrompt(problem=problem, prompt=Prompt(prompt_id=problem.problem_id, token_ids=(1,)), text="")


def make_source(*problems: Problem) -> PromptSource:
    return PromptSource(problems, built, seed=0)


def test_what_was_put_first_and_not_drawn_is_waiting() -> None:
    source = make_source(*map(problem, "abcd"))
    source.restore(3, ["b", "c"])
    assert source.waiting == ("b", "c")
    assert source.next().problem.problem_id == "b"
    assert source.waiting == ("c",)
    assert source.position == 3


def test_other_problems_have_another_digest() -> None:
    digest = make_source(problem("a"), problem("b")).digest()
    assert make_source(problem("a"), problem("b")).digest() == digest
    others = [(problem("b"), problem("a")), (problem("a"),), (problem("a"), problem("b", "2"))]
    assert digest not in {make_source(*problems).digest() for problems in others}
