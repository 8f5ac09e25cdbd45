"""A program that may be mended: the tests run in the reward service's sandbox, what they say is shown, one more try."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestration.environments.environment import Scoring, Step, Surroundings
from orchestration.errors import one_line
from orchestration.types import Problem
from reward_service.types import RewardItem, RewardSpec

TESTS = RewardSpec(name="code")


@dataclass(slots=True)
class Repairing:
    """Pays 1 for a try that passes every test, and 0 for one that does not; ends with the first of these or the last
    try. Shown are the failures' reasons and arguments, not the values that were expected."""

    max_tries: int = 2
    _scoring: Scoring | None = None
    _problem: Problem | None = None
    _num_tries: int = 0

    def enter(self, surroundings: Surroundings) -> None:
        self._scoring = surroundings.scoring

    async def reset(self, problem: Problem) -> None:
        self._problem, self._num_tries = problem, 0

    async def step(self, action: str) -> Step:
        assert self._problem is not None, "reset comes first"
        if self._scoring is None:
            raise RuntimeError("the tests run in a reward service, and there is none")
        self._num_tries += 1
        item = RewardItem(completion=action, reference=self._problem.reference)
        (result,) = await self._scoring.score([item], [TESTS])
        scored = result.rewards[TESTS.name]
        if scored.score is None:
            raise RuntimeError(f"the tests: {scored.reason}: {scored.details.get('message', '')}")
        passed = scored.details["passed"] == scored.details["tests"]
        done = passed or self._num_tries >= self.max_tries
        said = "" if done else _said(scored.details, self._problem.reference)
        return Step(said, reward=float(passed), done=done)

    async def close(self) -> None:
        """Holds nothing."""


def _said(details: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """What a run of the tests says, for the model."""
    failures = details.get("failures") or [{"why": details.get("why", "failed")}]
    lines = [f"{_test(one, reference)}{one_line(str(one['why']))}" for one in failures]
    return "\n".join(
        [f"{details['passed']} of {details['tests']} tests pass.", *dict.fromkeys(lines), "Write the function again."]
    )


def _test(failure: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """`triple(3): `, where the tests are calls."""
    calls, place = reference.get("calls", []), failure.get("test")
    if place is None or place >= len(calls):
        return ""
    call = calls[place]
    arguments = ", ".join(repr(argument) for argument in call.get("args", ()))
    return f"{call.get('function', reference.get('entry_point'))}({arguments}): "
