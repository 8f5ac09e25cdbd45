"""Telling a completion from its prompt."""

from __future__ import annotations

import pytest

from reward_service.text.queries import completion_of

PROMPT = "Solve the problem.\n\nQuestion: What is 48 + 24 ?\nAnswer: "


@pytest.mark.parametrize(
    ("query", "completion"),
    [
        (PROMPT + "72", "72"),
        (PROMPT, ""),
        ("<s>" + PROMPT + "72", "72"),
        ("<|begin_of_text|>" + PROMPT + "72", "72"),
        ("Solve the problem.\n\nQuestion: What is 48 + 24?\nAnswer: 72", " 72"),  # blanks cleaned up
        (PROMPT[12:] + "72", "72"),  # its beginning was cut off
        (PROMPT[-16:] + "72", "72"),
        (PROMPT[-15:] + "72", None),  # too little to be sure
        ("Something else altogether, and 72", None),
        ("72", None),
        ("", None),
    ],
)
def test_completions(query: str, completion: str | None) -> None:
    assert completion_of(query, PROMPT) == completion


def test_without_a_prompt_all_of_it_is_the_completion() -> None:
    assert completion_of("<s>72", "") == "<s>72"
    assert completion_of("", "") == ""


def test_a_prompt_that_repeats_itself_takes_no_long_search() -> None:
    assert completion_of("a" * 20 + "b", "a" * 200_000 + "c") is None
