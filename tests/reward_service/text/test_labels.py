"""Labels of other people's data sets."""

from __future__ import annotations

from typing import Any

import pytest

from reward_service.text.labels import reference_of


@pytest.mark.parametrize(
    ("label", "reference"),
    [
        ("72", {"final_answer": "72"}),
        (72, {"final_answer": 72}),
        ("a\n#### 72", {"final_answer": "72"}),
        ("#### 1 then #### 2 ", {"final_answer": "2"}),
        ("####", {"final_answer": "####"}),
        ("#### a\nb", {"final_answer": "#### a\nb"}),  # no answer column
        (["72", "73"], {"final_answer": ["72", "73"]}),
        ("", {}),
        (" \n", {}),
        (None, {}),
        ({"options": ["a"], "final_answer": "A"}, {"options": ["a"], "final_answer": "A"}),
        ({}, {}),
        (0, {"final_answer": 0}),
    ],
)
def test_a_label_becomes_a_reference(label: Any, reference: dict[str, Any]) -> None:
    assert reference_of(label) == reference


def test_under_another_key_it_stays_as_it_is() -> None:
    assert reference_of("assert f() == 1  #### one", "tests") == {"tests": "assert f() == 1  #### one"}
