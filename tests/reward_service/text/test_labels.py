"""Labels of other people's data sets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from reward_service.text.labels import reference_of


@pytest.mark.parametrize(
    ("label", "reference"),
    [
        ("72", {"final_answer": "72"}),
        (72, {"final_answer": 72}),
        ("a\n#### 72", {"final_answer": "72"}),
        ("#### 1 then #### 2 ", {"final_answer": "2"}),
        ("####", {}),
        ("48 + 24 = 72\n#### ", {}),
        ("#### a\nb", {"final_answer": "#### a\nb"}),  # no answer column
        (["72", "73"], {"final_answer": ["72", "73"]}),
        (["48 + 24\n#### 72", 73], {"final_answer": ["72", 73]}),
        (["#### 72"], {"final_answer": "72"}),
        ([], {"final_answer": []}),
        ('["72"]', {"final_answer": "72"}),
        ('["72", "73"]', {"final_answer": ["72", "73"]}),
        ("[72, 73]", {"final_answer": "[72, 73]"}),  # an interval
        ("{72, 73}", {"final_answer": "{72, 73}"}),
        (' {"options": ["a"], "final_answer": "A"}', {"options": ["a"], "final_answer": "A"}),
        (b"#### 72", {"final_answer": "72"}),
        (np.bytes_(b"72"), {"final_answer": "72"}),
        (np.array(["#### 72"], dtype=object), {"final_answer": "72"}),
        (np.array([71, 72]), {"final_answer": [71, 72]}),
        (np.float32(72), {"final_answer": 72.0}),
        (math.nan, {}),
        (np.float32("nan"), {}),
        (pd.NA, {}),
        (pd.NaT, {}),
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


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(ValueError, match=r"the label b'\\xff7' is bytes that are not UTF-8: invalid start byte"):
        reference_of(b"\xff7")


def test_under_another_key_it_stays_as_it_is() -> None:
    assert reference_of('["assert f() == 1"]', "asserts") == {"asserts": ["assert f() == 1"]}
    assert reference_of(["assert f() == 1"], "asserts") == {"asserts": ["assert f() == 1"]}
    assert reference_of("assert f() == 1  #### one", "tests") == {"tests": "assert f() == 1  #### one"}
