"""Answers with the score they must have: a line each in the files beside this one, many of them out of public reports
of graders that got them wrong. A mistake found later is one line more.

A line has `reward`, `parameters` (if not the defaults), `completion`, `reference`, `score` (a number, null for an item
that cannot be scored, or {"min": .., "max": ..}), `source` (a repository and the number of its issue or pull request,
whose mistake this is or is next to; or "own") and `why`. `pytest -s` of this file prints how many there are of each
reward, and how many were right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_service.registry import BUILTIN_REWARDS
from reward_service.rewards.base import Task
from reward_service.scoring import apply_reward, make_plan
from reward_service.types import RewardSpec

FILES = sorted(path for path in Path(__file__).parent.glob("*.jsonl") if path.stem != "code")  # it needs a sandbox


def read_cases(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scored(case: dict[str, Any]) -> float | None:
    spec = RewardSpec(name=case["reward"], params=case.get("parameters", {}))
    (planned,) = make_plan([spec], BUILTIN_REWARDS)
    return apply_reward(planned, Task(case["completion"], case["reference"])).score


def is_right(expected: Any, score: float | None) -> bool:
    if expected is None or score is None:
        return expected is score
    if isinstance(expected, dict):
        return bool(expected["min"] <= score <= expected["max"])
    return score == pytest.approx(expected)


def mistakes(cases: list[dict[str, Any]]) -> Iterator[str]:
    for number, case in enumerate(cases, 1):
        if not is_right(case["score"], score := scored(case)):
            answer = f"{case['completion'][-60:]!r} for {json.dumps(case['reference'])[:80]}"
            yield f"line {number}: {answer} must score {case['score']}, not {score} ({case['why']}; {case['source']})"


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_cases(path: Path) -> None:
    cases = read_cases(path)
    wrong = list(mistakes(cases))
    nulls = sum(case["score"] is None for case in cases)
    print(
        f"\n{path.stem:20} {len(cases):5} tried {len(cases) - len(wrong):5} right {len(wrong):3} wrong {nulls:3} null"
    )
    assert not wrong, "\n".join(wrong)


def test_every_reward_that_compares_has_cases() -> None:
    assert len({case["reward"] for path in FILES for case in read_cases(path)}) >= 11
    assert sum(len(read_cases(path)) for path in FILES) >= 600
