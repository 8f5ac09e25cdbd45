"""Expressions are compared at points that nobody knows who writes an answer."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from reward_service.text import expressions
from reward_service.text.expressions import equivalent
from reward_service.text.plain import parse_expression

SHOW_POINTS = """
from reward_service.text import expressions, plain
x, y = (plain.parse_expression(text) for text in ("sin(x)", "cos(y)"))
print(list(expressions._points(x, y, sorted((x - y).free_symbols, key=str), "real")))
"""


def points_of_a_process(key: str) -> str:
    environment = {**os.environ, "RLVR_COMPARISON_KEY": key}
    command = [sys.executable, "-c", SHOW_POINTS]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout


def test_the_points_follow_from_the_key() -> None:
    first, again, other = (points_of_a_process(key) for key in ("aa" * 32, "aa" * 32, "bb" * 32))
    assert first == again != other


def test_processes_that_are_started_inherit_the_key() -> None:
    assert os.environ["RLVR_COMPARISON_KEY"] == expressions._KEY
    assert len(expressions._KEY) >= 32


def test_the_points_differ_from_item_to_item() -> None:
    x, one, other = (parse_expression(text) for text in ("x", "sin(x)", "sin(x) + 1"))
    first, second = (list(expressions._points(side, x, [x], "real")) for side in (one, other))
    assert not {point[x] for point in first} & {point[x] for point in second}
    assert any(point[x] < 0 for point in first)


def test_what_vanishes_at_points_that_were_once_fixed_is_not_paid() -> None:
    generator = random.Random(0)  # as it was
    roots = []
    for _ in range(5):
        root = f"{generator.randint(1, 3000)}/1009"
        roots.append(f"(x + {root})" if generator.random() < 0.5 else f"(x - {root})")
    vanishing = "*".join(roots)
    for answer in (f"exp(x) + {vanishing}", f"exp(x) + sin({vanishing})", f"exp(x) + abs({vanishing})^(1/2)"):
        assert equivalent(parse_expression("exp(x)"), parse_expression(answer)) is False


@pytest.mark.parametrize("denominator", [1009, 1000003, 2 * 3 * 5 * 7 * 11 * 13 * 17])
def test_what_vanishes_at_all_multiples_of_a_fraction_is_not_paid(denominator: int) -> None:
    answer = parse_expression(f"exp(x) + sin({denominator}*pi*x)")
    assert equivalent(parse_expression("exp(x)"), answer) is False


def test_with_real_variables_what_is_not_real_is_not_compared_unless_all_is() -> None:
    for one, other, same in (
        ("log(x^2)", "2*log(x)", True),
        ("sqrt(1/x)", "1/sqrt(x)", True),
        ("sqrt(x^2)", "x", False),
        ("sqrt(-1-x^2)", "5*sqrt(-1-x^2)", False),
        ("sqrt(-4-4x^2)", "2*sqrt(-1-x^2)", True),
    ):
        assert equivalent(parse_expression(one), parse_expression(other)) is same


def test_small_values_are_compared_by_their_own_size() -> None:
    for one, other in (("exp(-99)", "exp(-98)"), ("pi*10^-200", "pi*10^-201"), ("exp(-300)", "exp(-301)")):
        assert equivalent(parse_expression(one), parse_expression(other)) is False
    assert equivalent(parse_expression("sin(1)^2 + cos(1)^2 - 1"), parse_expression("0")) is True
