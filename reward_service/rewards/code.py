"""A Python solution against unit tests: 0.1 for compiling, 0.1 for running, up to 0.3 by tests passed, 0.5 for all.

The weights are parameters. "Running" means that the module's body came to its end (for programs: with one test at
least). Time-outs, crashes and broken limits of the solution are failed tests, not null.

The solution is the completion's last whole fenced block that is marked `python`, `python3` or `py` (a file's name may
follow, or be the mark), of several the last that defines what the tests want; without such a block the last one
without a mark; a completion without any fence is the code itself. Blocks may be indented or quoted, and those behind
`</think>` come first; one that is not closed counts where no other is. `extract` has other rules. With `preamble` the
usual names (`List`, `deque`, `math`, LeetCode's nodes) are there without an import.

The reference has tests, of one kind or several, each counting the same:
- `stdio`: `[{"stdin": "3\\n", "stdout": "9\\n"}]`, the solution as a script (`__name__ == "__main__"`) for each;
- `calls`: `[{"args": [3], "kwargs": {}, "expected": 9}]` with `"function"` or the reference's `"entry_point"`;
  `Class.method` makes an instance first, as does in tests of all kinds a name that only `class Solution` has.
  Lists in `expected` stand for lists or tuples;
- `asserts`: `["assert square(3) == 9"]` and any other assertion; `"setup"` runs before each, in the solution's module
  and in that of the test;
- `tests`: code, as text or a list of texts: HumanEval's `def check(candidate)` with `entry_point`, `test_*` functions,
  unittest.TestCase classes (each function or method a test), or a script; `import solution` works. A `check` made of
  assertions alone is treated as those.

Values are equal as Python's `==` has it, by what they are and not by what they say; a float that should be a float may
be off in its last digits. Of an assertion, everything but the solution's functions is Python's own: without an
`entry_point` those are the functions that are called innermost. The tests run in a process that the solution is not
in; what is still to be gained, and what else the sandbox does not cover, is in `reward_service.sandbox`.

A solution that leaves in order at its end (`exit()`) has come to its end. What ended a test names the setting of its
limit (`sandbox.wall_s`, `sandbox.recursion_limit`, …).

References without tests, or with tests that do not compile or import what is not there, are null
(`invalid_reference`); no sandbox is `unavailable`; a sandbox that fails by itself, or a machine that gives it no
processor, is `verifier_error`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from reward_service.rewards.base import (
    InvalidReferenceError,
    NotScorableError,
    Reference,
    Reward,
    RewardParams,
    Task,
    UnavailableError,
    definition_hash,
)
from reward_service.sandbox.compare import MalformedValueError, Tolerance, is_true, matches, parse
from reward_service.sandbox.preamble import MODULES, preamble_for, with_methods
from reward_service.sandbox.probe import backend_of
from reward_service.sandbox.program import INSIDE
from reward_service.sandbox.run import SandboxFaultError, SandboxUnavailableError, TestOutcome, run_tests
from reward_service.sandbox.settings import Backend, SandboxSettings
from reward_service.sandbox.testcases import KEYS, BrokenTestsError, Case, read
from reward_service.text.fences import one_line_code, python_blocks, without_thoughts
from reward_service.types import ReferenceKeys, RewardScore

_MAX_FAILURES = 5


class Params(RewardParams):
    """Parameters of `code`."""

    compiles: float = Field(0.1, ge=0, le=1, description="For code that compiles.")
    runs: float = Field(0.1, ge=0, le=1, description="For code whose module body comes to its end.")
    tests: float = Field(0.3, ge=0, le=1, description="Times the share of the tests that pass.")
    all_tests: float = Field(0.5, ge=0, le=1, description="For passing all of them.")
    extract: Literal["last_block", "only_block", "all_blocks", "whole"] = Field(
        "last_block",
        description="only_block: several blocks score 0; all_blocks: joined; whole: the completion is the code.",
    )
    stdout: Literal["lines", "tokens", "exact"] = Field(
        "lines",
        description="lines: blanks at the ends of lines and empty lines at the end do not matter; tokens: only what"
        " stands between blanks counts, numbers within the tolerance.",
    )
    rel_tol: float = Field(1e-9, ge=0, lt=1, description="How far a float may be off, relative to the expected value.")
    abs_tol: float = Field(1e-12, ge=0, description="How far a float may be off in any case.")
    preamble: bool = Field(
        False,
        description="Usual names that the code uses without importing them (List, math, deque, ListNode) are there.",
    )
    test_timeout_s: float | None = Field(
        None, gt=0, description="Seconds for one test, at most what the server allows; None: what it allows."
    )

    @model_validator(mode="after")
    def _sum_is_at_most_one(self) -> Self:
        total = self.compiles + self.runs + self.tests + self.all_tests
        if not 0 < total <= 1 + 1e-9:
            raise ValueError(f"the weights add up to {total:g}, and more than 0 and at most 1 is wanted")
        return self


@dataclass(frozen=True, kw_only=True)
class CodeReward(Reward):
    """`code` with the server's sandbox; made anew in a worker from these settings."""

    sandbox: SandboxSettings

    @cached_property
    def version(self) -> str:
        """Sha-256 of the definition, with what runs inside the sandbox, which is sent there and not imported."""
        return definition_hash(__name__, *INSIDE, libraries=self.preload)

    def prepare(self) -> None:
        """Finds the sandbox by a trial."""
        backend_of(self.sandbox)

    def apply(self, task: Task, params: RewardParams) -> RewardScore:
        """The score of the completion in this sandbox."""
        assert isinstance(params, Params)
        return score(task.completion, task.reference, params, self.sandbox)


def score(completion: str, reference: Reference, params: Params, sandbox: SandboxSettings | None = None) -> RewardScore:
    """Between 0 and the sum of the weights; details say how many tests passed, and why the first failures failed."""
    sandbox = sandbox if sandbox is not None else SandboxSettings()
    try:
        cases = read(reference or {})
    except BrokenTestsError as error:
        raise InvalidReferenceError(str(error)) from None
    code, why = extract(completion, params.extract, cases[0].wanted)
    if code is None:
        return RewardScore(score=0.0, details={"why": why, "passed": 0, "tests": len(cases)})
    try:
        code = with_methods(code.removeprefix("\ufeff"), cases[0].wanted)
        return _run(code, cases, params, sandbox, backend_of(sandbox))
    except SandboxUnavailableError as error:
        raise UnavailableError(str(error)) from None
    except SandboxFaultError as error:
        raise NotScorableError(f"the sandbox failed: {error}") from None


def _run(code: str, cases: Sequence[Case], params: Params, sandbox: SandboxSettings, backend: Backend) -> RewardScore:
    jobs: list[dict[str, Any]] = [dict(case.job) for case in cases]
    if params.test_timeout_s is not None:
        jobs = [{**job, "wall_s": min(params.test_timeout_s, sandbox.wall_s)} for job in jobs]
    preamble = preamble_for(code) if params.preamble else ""
    preload = _named_modules(preamble + code, jobs)
    compiled = ran = False
    passed = judged = 0
    failures: list[dict[str, Any]] = []
    outcomes = run_tests(code, jobs, sandbox, backend, preload=preload, preamble=preamble)
    for at, (case, outcome) in enumerate(zip(cases, outcomes, strict=False)):
        judged += 1
        compiled = compiled or "compiled" in outcome.stages
        ran = ran or "ran" in outcome.stages
        if "no_test" in outcome.stages:
            said = _said(outcome.stages["no_test"])
            raise InvalidReferenceError(
                f"the tests do not run here: {said}; sandbox.packages names where it is, if it is"
            )
        why = judge(case, outcome, params)
        passed += why is None
        if why is not None and len(failures) < _MAX_FAILURES:
            failures.append({"test": at, "why": with_limit(why, sandbox, params)})
    total = params.compiles * compiled + params.runs * ran + params.tests * passed / len(cases)
    if passed == len(cases):
        total = params.compiles + params.runs + params.tests + params.all_tests
    details: dict[str, Any] = {"passed": passed, "tests": len(cases), "compiled": compiled, "ran": ran}
    details |= {"failures": failures, "not_run": len(cases) - judged, "sandbox": backend}
    if failures:
        details["why"] = failures[0]["why"]
    return RewardScore(score=min(total, 1.0), details=details)


def judge(case: Case, outcome: TestOutcome, params: Params) -> str | None:
    """None if the test passed, else why not."""
    stages = outcome.stages
    if outcome.broken is not None:
        return outcome.broken
    for stage in ("no_compile", "no_run", "failed"):
        if stage in stages:
            return f"{_said(stages[stage])}" if stage != "no_compile" else f"does not compile: {_said(stages[stage])}"
    if outcome.status != 0 and stages.keys().isdisjoint(("passed", "value")):
        return f"ended by signal {-outcome.status}" if outcome.status < 0 else f"ended with status {outcome.status}"
    if case.judge == "stdout":
        # a program may leave by os._exit once it has printed: what it printed is all that is asked for
        return None if same_output(outcome.output, case.expected, params) else "wrong output"
    if case.judge == "verdict":
        return None if "passed" in stages else "ended before the test did"
    if "value" not in stages:
        return "ended before the test did"
    tolerance = Tolerance(rel=params.rel_tol, abs=params.abs_tol, lists_are_tuples=case.json_lists)
    try:
        node = parse(stages["value"])
        if case.judge == "truth":
            return None if is_true(node) is case.expected else "wrong value"
        return None if matches(node, case.expected, tolerance) else "wrong value"
    except MalformedValueError as error:
        return str(error)


def _said(payload: str) -> str:
    try:
        said = parse(payload)
    except MalformedValueError:
        return "failed"
    return said[:200] if isinstance(said, str) else "failed"


def same_output(output: str, expected: str, params: Params) -> bool:
    """Whether a program printed what it should, by the rule that the parameters name."""
    if params.stdout == "exact":
        return output == expected
    if params.stdout == "lines":
        return _lines(output) == _lines(expected)
    words, wanted = output.split(), expected.split()
    return len(words) == len(wanted) and all(
        word == other or _close(word, other, params) for word, other in zip(words, wanted, strict=True)
    )


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


_NUMBER = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,4})?", re.ASCII)


def _close(word: str, other: str, params: Params) -> bool:
    if not (_NUMBER.fullmatch(word) and _NUMBER.fullmatch(other)):
        return False
    if Decimal(word) == Decimal(other):
        return True
    if other.lstrip("+-").isdigit():
        return False
    tolerance = Tolerance(rel=params.rel_tol, abs=params.abs_tol)
    return matches(["f", float(word).hex()], float(other), tolerance)


def extract(completion: str, rule: str, wanted: Sequence[str] = ()) -> tuple[str | None, str]:
    """The solution in a completion, or None and why there is none.

    Of several blocks the last one that defines one of the names that are wanted, or the last one if none does: models
    show how a function is called in a block of its own.
    """
    if rule == "whole":
        return completion, ""
    found = python_blocks(completion)
    if found is None:
        return one_line_code(completion) or without_thoughts(completion), ""
    if not found:
        return None, "no block of Python code"
    if rule == "only_block" and len(found) > 1:
        return None, f"{len(found)} blocks of code, and only one is allowed"
    codes = [block.code for block in found]
    if rule == "all_blocks":
        return "\n".join(codes), ""
    return next((code for code in reversed(codes) if _defines(code, wanted)), codes[-1]), ""


def _defines(code: str, names: Sequence[str]) -> bool:
    pattern = r"^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|^(\w+)[ \t]*=[^=]"
    defined = {name for pair in re.findall(pattern, code, re.MULTILINE) for name in pair}
    return not defined.isdisjoint(names)


_IMPORT = re.compile(r"^[ \t]{0,40}(?:from|import)[ \t]+(\w+)", re.MULTILINE)


def _named_modules(code: str, jobs: Sequence[dict[str, Any]]) -> list[str]:
    """Modules that are loaded once for all tests of an item, if its code names them."""
    judges = [job["judge"] for job in jobs if "judge" in job]
    needed = {"json"} if judges else set()
    parts = [job.get(key) or "" for job in (*jobs, *judges) for key in ("code", "setup", "imports")]
    return sorted(needed | {name for text in {code, *parts} for name in _IMPORT.findall(text)} & MODULES)


_LIMITS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"^timeout$", ("wall_s",)),
    (r"^total_timeout$", ("total_s",)),
    (r"^memory$|MemoryError", ("memory_mb",)),
    (r"^processes$|Resource temporarily unavailable", ("processes",)),
    (r"can't start new thread", ("processes", "memory_mb")),
    (r"^output$", ("output_kb",)),
    (r"RecursionError", ("recursion_limit",)),
    (r"signal 11$", ("stack_mb", "memory_mb")),
    (r"signal 24$", ("cpu_s",)),
    (r"signal 25$|File too large", ("file_mb",)),
    (r"Too many open files", ("open_files",)),
    (r"No space left on device", ("scratch_mb",)),
    (r"too many parts", ("value_parts",)),
)
"""What a failure looks like that may be a limit's, and the settings of the sandbox that set it."""


def with_limit(why: str, sandbox: SandboxSettings, params: Params) -> str:
    """Why a test failed, with the setting whose limit it met, if it met one."""
    for pattern, names in _LIMITS:
        if re.search(pattern, why):
            limits = [f"sandbox.{name}={getattr(sandbox, name):g}" for name in names]
            if names == ("wall_s",) and params.test_timeout_s is not None and params.test_timeout_s < sandbox.wall_s:
                limits = [f"test_timeout_s={params.test_timeout_s:g}"]
            return f"{why} (limit: {', '.join(limits)})"
    return why


def make_code_reward(sandbox: SandboxSettings) -> CodeReward:
    """`code` in the sandbox of a server's configuration."""
    return CodeReward(
        name="code",
        params=Params,
        score=score,
        keys=ReferenceKeys(any_of=KEYS, optional=("entry_point", "setup")),
        deadline_s=sandbox.deadline_s,
        sandbox=sandbox,
    )


REWARD = make_code_reward(SandboxSettings())
