"""A Python program, run in the sandbox: 1 if it came to its end, else 0; the details say what it printed.

For tools of agents more than for learning: the program is the completion's block as `code` finds it, or with
`extract = "whole"` the completion itself. `output` in the details is what it printed, `why` what ended it early.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Literal

from pydantic import Field

from reward_service.rewards import code
from reward_service.rewards.base import (
    NotScorableError,
    Reference,
    RewardParams,
    Task,
    UnavailableError,
    definition_hash,
)
from reward_service.sandbox.probe import backend_of
from reward_service.sandbox.program import INSIDE
from reward_service.sandbox.run import SandboxFaultError, SandboxUnavailableError, run_tests
from reward_service.sandbox.settings import SandboxSettings
from reward_service.sandbox.testcases import programs
from reward_service.types import ReferenceKeys, RewardScore

_MAX_OUTPUT_CHARS = 4000


class Params(RewardParams):
    """Parameters of `python`."""

    extract: Literal["last_block", "only_block", "all_blocks", "whole"] = Field(
        "last_block", description="As for `code`; whole: the completion is the program."
    )
    stdin: str = Field("", description="What the program may read.")


class PythonReward(code.CodeReward):
    """`python` with the server's sandbox."""

    @cached_property
    def version(self) -> str:
        """Sha-256 of the definition, with what runs inside the sandbox."""
        return definition_hash(__name__, *INSIDE, libraries=self.preload)

    def apply(self, task: Task, params: RewardParams) -> RewardScore:
        """What came of the completion in this sandbox."""
        assert isinstance(params, Params)
        return score(task.completion, task.reference, params, self.sandbox)


def score(completion: str, reference: Reference, params: Params, sandbox: SandboxSettings | None = None) -> RewardScore:
    """1.0 or 0.0, with `output` and `why` in the details."""
    sandbox = sandbox if sandbox is not None else SandboxSettings()
    program, why = code.extract(completion, params.extract)
    if program is None:
        return RewardScore(score=0.0, details={"why": why, "output": ""})
    case = programs([{"stdin": params.stdin, "stdout": ""}])[0]
    try:
        outcome = next(run_tests(program, [case.job], sandbox, backend_of(sandbox)))
    except SandboxUnavailableError as error:
        raise UnavailableError(str(error)) from None
    except SandboxFaultError as error:
        raise NotScorableError(f"the sandbox failed: {error}") from None
    rules = code.Params(stdout="exact")
    ended = code.judge(replace(case, expected=outcome.output), outcome, rules)
    details = {"output": outcome.output[:_MAX_OUTPUT_CHARS]}
    if ended is not None:
        details["why"] = code.with_limit(ended, sandbox, rules)
    return RewardScore(score=float(ended is None), details=details)


def make_python_reward(sandbox: SandboxSettings) -> PythonReward:
    """`python` in the sandbox of a server's configuration."""
    return PythonReward(
        name="python", params=Params, score=score, keys=ReferenceKeys(), deadline_s=sandbox.deadline_s, sandbox=sandbox
    )


REWARD = make_python_reward(SandboxSettings())
