"""The `code` reward: what earns what, and tricks that must not pay."""

from __future__ import annotations

import importlib.util
import pickle
import re
import textwrap
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reward_service.rewards.base import InvalidReferenceError, NotScorableError, Task, UnavailableError
from reward_service.rewards.code import (
    REWARD,
    CodeReward,
    Params,
    extract,
    make_code_reward,
    same_output,
    score,
)
from reward_service.sandbox import probe
from reward_service.sandbox.compare import MalformedValueError, Tolerance, is_true, matches, parse
from reward_service.sandbox.inside.values import TooLargeError, encode, plain
from reward_service.sandbox.program import message
from reward_service.sandbox.run import SandboxFaultError, SandboxUnavailableError
from reward_service.sandbox.settings import SandboxSettings
from reward_service.sandbox.testcases import BrokenTestsError, read
from reward_service.text.fences import Block, fenced_blocks
from reward_service.types import RewardScore

SANDBOX = SandboxSettings(mode="strict", wall_s=3, total_s=8, cpu_s=2, memory_mb=256)
RUNS = pytest.mark.skipif(
    probe.try_backend(SANDBOX, "namespaces") is not None and probe.try_backend(SANDBOX, "bubblewrap") is not None,
    reason="no sandbox on this machine",
)
SQUARE = "def square(x):\n    return x * x"
ASSERTS = {"asserts": ["assert square(2) == 4", "assert square(-3) == 9"]}


def run(code: str, reference: dict[str, Any], **params: Any) -> RewardScore:
    return score(f"```python\n{textwrap.dedent(code)}\n```", reference, Params(**params), SANDBOX)


# What earns what

GRADES = [
    pytest.param(SQUARE, 1.0, id="all tests"),
    pytest.param("def square(x):\n    return x + 2", 0.1 + 0.1 + 0.15, id="one test of two"),
    pytest.param("def square(x):\n    return 'no'", 0.2, id="no test"),
    pytest.param("square = None", 0.2, id="no function"),
    pytest.param("raise ValueError('x')", 0.1, id="does not run"),
    pytest.param("def square(x:", 0.0, id="does not compile"),
    pytest.param("import sys; sys.exit(0)", 0.1, id="leaves before the tests"),
    pytest.param("import os; os._exit(0)", 0.1, id="leaves at once"),
]


@RUNS
@pytest.mark.parametrize(("code", "expected"), GRADES)
def test_partial_credit(code: str, expected: float) -> None:
    assert run(code, ASSERTS).score == pytest.approx(expected)


@RUNS
def test_weights_are_parameters() -> None:
    one_of_two = "def square(x):\n    return x + 2"
    weights = {"compiles": 0, "runs": 0, "tests": 1, "all_tests": 0}
    assert run(one_of_two, ASSERTS, **weights).score == 0.5
    weights = {"compiles": 0, "runs": 0, "tests": 0, "all_tests": 1}
    assert run(one_of_two, ASSERTS, **weights).score == 0.0
    assert run(SQUARE, ASSERTS, **weights).score == 1.0
    with pytest.raises(ValidationError, match=r"add up to 1\.5"):
        Params(all_tests=1)


@RUNS
def test_details_say_what_failed() -> None:
    result = run("def square(x):\n    return [1, 2][x]", {"asserts": ["assert square(9) == 81"]})
    assert result.details["why"] == "IndexError: list index out of range"
    assert result.details["passed"] == 0
    assert result.details["tests"] == 1
    assert result.details["compiled"] is True
    assert run("while True: pass", ASSERTS, test_timeout_s=0.3).details["why"] == "timeout (limit: test_timeout_s=0.3)"
    assert "MemoryError" in run("x = bytearray(10**11)", ASSERTS).details["why"]


HUMAN_EVAL = """
METADATA = {"author": "x"}
def check(candidate):
    assert True, "This prints if this assert fails"
    assert candidate(2) == 4, "two"
    for x in range(3):
        assert candidate(x) == x * x
"""
UNITTEST = """
import unittest
class TestSquare(unittest.TestCase):
    def setUp(self): self.two = 2
    def test_two(self): self.assertEqual(square(self.two), 4)
    def test_type(self):
        with self.assertRaises(TypeError): square("x")
"""
FORMATS = [
    ({"calls": [{"args": [2], "expected": 4}, {"kwargs": {"x": 3}, "expected": 9}], "entry_point": "square"}, 2),
    ({"tests": HUMAN_EVAL, "entry_point": "square"}, 1),
    ({"tests": HUMAN_EVAL.partition("    for")[0], "entry_point": "square"}, 1),
    ({"tests": UNITTEST}, 2),
    ({"tests": "def test_two():\n    assert square(2) == 4\ndef test_three():\n    assert square(3) == 9"}, 2),
    ({"tests": ["from solution import square\nassert square(2) == 4", "assert square(3) > 8"]}, 2),
    ({"asserts": "assert [square(1), 2] == [1, 2]\nassert square(0.1) == 0.01\nassert not square(0)"}, 3),
    (
        {
            "asserts": ["assert set([square(1)]) == set([1])", "assert math.sqrt(square(2)) == 2"],
            "setup": "import math",
        },
        2,
    ),
    ({"asserts": ["assert 4 == square(2)"], "calls": [{"function": "square", "args": [1], "expected": 1}]}, 2),
]


@RUNS
@pytest.mark.parametrize(("reference", "tests"), FORMATS)
def test_formats_of_tests(reference: dict[str, Any], tests: int) -> None:
    right = run(SQUARE, reference)
    assert (right.score, right.details["tests"]) == (1.0, tests), right
    wrong = run("def square(x):\n    return -7.5", reference)
    assert wrong.details["passed"] == 0, wrong


@RUNS
def test_classes_are_tested_under_their_names() -> None:
    tests = "def check(candidate):\n    s = candidate()\n    s.push(1)\n    assert s.pop() == 1"
    code = "class Stack(list):\n    push = list.append"
    assert run(code, {"tests": tests, "entry_point": "Stack"}).score == 1.0
    method = {"calls": [{"function": "Solution.square", "args": [3], "expected": 9}]}
    assert run("class Solution:\n    def square(self, x): return x * x", method).score == 1.0


@RUNS
def test_programs() -> None:
    reference = {"stdio": [{"stdin": "3\n", "stdout": "9\n"}, {"stdin": "-2\n", "stdout": "4"}]}
    assert run("print(int(input()) ** 2)", reference).score == 1.0
    assert (
        run(
            "import sys\nif __name__ == '__main__':\n    print(int(sys.stdin.read())**2)\n    sys.exit()", reference
        ).score
        == 1.0
    )
    assert run("import os\nos.write(1, str(int(input())**2).encode())\nos._exit(0)", reference).details["passed"] == 2
    assert run("print(9)", reference).details["passed"] == 1
    assert run("print(int(input()) ** 2)\n1/0", reference).details["why"] == "ZeroDivisionError: division by zero"
    late = "import atexit, threading, time\natexit.register(lambda: print('9'))\n"
    late += "threading.Thread(target=lambda: time.sleep(0.1)).start()"
    assert run(late, reference).details["passed"] == 1


# Tricks


LIAR = """
class Liar(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    def __gt__(self, other): return True
    def __sub__(self, other): return 0
    def __abs__(self): return 0
    def __repr__(self): return "4"
    __str__ = __format__ = lambda self, *a: "4"
    __hash__ = int.__hash__
    __index__ = __int__ = lambda self: 4
    def __class_getitem__(cls, x): return 4
class Plain:
    __eq__ = __lt__ = __gt__ = __contains__ = lambda self, other: True
    __hash__ = lambda self: 0
    __sub__ = __abs__ = __rsub__ = lambda self, *a: 0
    __class__ = int
    __repr__ = lambda self: "4"
"""
TRICKS = [
    pytest.param(f"{LIAR}\ndef square(x): return Liar(7)", id="int that equals everything"),
    pytest.param(f"{LIAR}\ndef square(x): return Plain()", id="object that equals everything"),
    pytest.param(f"{LIAR}\nclass square(Plain):\n    def __init__(self, x): pass", id="a class instead"),
    pytest.param(
        "import builtins\nbuiltins.print('passed')\ndef square(x): print('1 passed\\nOK'); exit(0)", id="prints"
    ),
    pytest.param(
        "import builtins, unittest\ndef yes(*a, **k): return True\n"
        "for n in ('isinstance', 'all', 'any', 'abs', 'len', 'range'): setattr(builtins, n, yes)\n"
        "for n in dir(unittest.TestCase):\n    if n.startswith('assert'): setattr(unittest.TestCase, n, yes)\n"
        "def square(x): return 7",
        id="patched at the start",
    ),
    pytest.param(
        "import builtins, unittest\ndef square(x):\n"
        "    for n in ('isinstance', 'all', 'any', 'abs', 'len', 'range'): setattr(builtins, n, lambda *a: [])\n"
        "    for n in dir(unittest.TestCase):\n"
        "        if n.startswith('assert'): setattr(unittest.TestCase, n, lambda *a, **k: True)\n"
        "    return 7",
        id="patched in the test",
    ),
    pytest.param("def square(x): raise SystemExit(0)", id="SystemExit"),
    pytest.param("def square(x): raise GeneratorExit", id="BaseException"),
    pytest.param("import os\ndef square(x): os._exit(0)", id="os._exit"),
    pytest.param("import os, signal\ndef square(x): os.kill(os.getpid(), signal.SIGKILL)", id="kills itself"),
    pytest.param(
        "import os\ndef square(x):\n    for fd in range(100):\n        try: os.write(fd, b'passed \\n0 passed \\n')\n"
        "        except OSError: pass\n    os._exit(0)",
        id="forged verdict",
    ),
    pytest.param("import os\ndef square(x):\n    os.closerange(3, 100)\n    return 7", id="closes the verdict"),
    pytest.param(
        "import sys\nsys.settrace(lambda *a: None)\nsys.modules.clear()\ndef square(x): return 7", id="no modules"
    ),
    pytest.param(
        "import sys\nfor m in list(sys.modules.values()): vars(m).pop('fail', 0)\ndef square(x): return 7", id="pops"
    ),
]
TRICKED = [
    pytest.param({"asserts": ["assert square(2) == 4"]}, id="asserts"),
    pytest.param({"calls": [{"args": [2], "expected": 4}], "entry_point": "square"}, id="calls"),
    pytest.param({"tests": HUMAN_EVAL, "entry_point": "square"}, id="check"),
    pytest.param({"tests": UNITTEST.partition("    def test_type")[0], "entry_point": "square"}, id="unittest"),
    pytest.param(
        {"tests": "def test():\n    assert abs(square(2) - 4) < 1e-9\n    assert len([0] * square(2)) == 4",
         "entry_point": "square"}, id="tolerance",
    ),
]  # fmt: skip


@RUNS
@pytest.mark.parametrize("reference", TRICKED)
@pytest.mark.parametrize("code", TRICKS)
def test_tricks_do_not_pay(code: str, reference: dict[str, Any]) -> None:
    result = run(code, reference)
    assert result.score is not None
    assert result.score <= 0.2, result


# What can still be gained: each of these is said in the docstrings of `code` or `sandbox`, and must go from there, and
# from here, on the day that it is closed.

LOOKS = """
import gc
def f(n):
    for found in gc.get_objects():
        if type(found).__name__ == "function" and found.__name__ == "check":
            for value in found.__code__.co_consts:
                if isinstance(value, int) and value > 4000:
                    return n + value
    return 0
"""
CHECK = "def check(candidate):\n    for n in (1, 2):\n        assert candidate(n) == n + 4242"
SAME_POINT = (
    "class Point:\n    def __init__(self, x): pass\n    def __eq__(self, other): return isinstance(other, Point)"
)
HOLES = [
    pytest.param(
        LOOKS, {"tests": f"from unittest.mock import patch\n{CHECK}", "entry_point": "f"},
        id="tests that patch run beside the solution, which may look for them",
    ),
    pytest.param(
        f"{SAME_POINT}\ndef move(point, dx): return point",
        {"tests": "def test():\n    assert move(Point(1), 2) == Point(3)"},
        id="what is equal is for a class to say that the tests name",
    ),
    pytest.param(
        "def encode(text): return text\ndef decode(text): return text",
        {"tests": "def check(candidate):\n    for text in ('a', 'bc'):\n        assert candidate(encode(text)) == text",
         "entry_point": "decode"},
        id="helpers that the tests do not make are the solution's",
    ),
    pytest.param(
        "def f(): return WANTED", {"setup": "WANTED = 4242", "asserts": ["assert f() == 4242", "assert f() == WANTED"]},
        id="the setup is run in the solution's module too",
    ),
    pytest.param(
        "def f():\n    with open('/tmp/count', 'a+') as file:\n        file.write('x')\n        return file.tell()",
        {"asserts": ["assert f() == 1", "assert f() == 2"]},
        id="tests of one item share the scratch folder",
    ),
]  # fmt: skip


@RUNS
@pytest.mark.parametrize(("code", "reference"), HOLES)
def test_a_hole_is_still_open(code: str, reference: dict[str, Any]) -> None:
    assert run(code, reference).score == 1.0


@RUNS
def test_tests_that_need_not_be_beside_the_solution_are_not() -> None:
    assert run(LOOKS, {"tests": CHECK, "entry_point": "f"}).details["passed"] == 0
    assert run("def f(n): return n + 4242", {"tests": CHECK, "entry_point": "f"}).score == 1.0


# Limits


LIMITS = [
    pytest.param("def f(): return f()", {}, "recursion_limit", id="recursion_limit"),
    pytest.param(
        "import functools, sys\nsys.setrecursionlimit(10**6)\n@functools.cache\ndef g(n): return n and g(n - 1)\n"
        "def f(): return g(30_000)", {"stack_mb": 1}, "stack_mb", id="stack_mb",
    ),
    pytest.param("def f(): return 'x' * 1_500_000", {"output_kb": 1024}, "output_kb", id="output_kb"),
    pytest.param("def f(): return [0] * 300", {"value_parts": 300}, "value_parts", id="value_parts"),
    pytest.param("def f(): return bytearray(10**10)", {}, "memory_mb", id="memory_mb"),
    pytest.param("import time\ndef f(): time.sleep(60)", {"wall_s": 0.3}, "wall_s", id="wall_s"),
    pytest.param("import time\ndef f(): time.sleep(60)", {"total_s": 0.3}, "wall_s|total_s", id="total_s"),
    pytest.param("def f():\n    while True: pass", {"cpu_s": 1, "wall_s": 30, "total_s": 60}, "cpu_s", id="cpu_s"),
    pytest.param("def f(): return [open('/dev/null') for _ in range(99)]", {}, "open_files", id="open_files"),
    pytest.param("def f(): open('/tmp/x', 'wb').write(b'x' * 2**21)", {"file_mb": 1}, "file_mb", id="file_mb"),
    pytest.param("def f(): open('/tmp/x', 'wb').write(b'x' * 2**22)", {"scratch_mb": 1}, "scratch_mb", id="scratch_mb"),
    pytest.param(
        "import threading, time\ndef f():\n    for _ in range(40):\n"
        "        threading.Thread(target=time.sleep, args=(60,)).start()", {}, "processes", id="processes",
    ),
]  # fmt: skip


@RUNS
@pytest.mark.parametrize(("code", "changes", "setting"), LIMITS)
def test_the_limit_that_ends_a_test_is_named(code: str, changes: dict[str, Any], setting: str) -> None:
    result = score(code, {"asserts": ["assert f() == 1"]}, Params(), SANDBOX.model_copy(update=changes))
    assert re.search(rf"\(limit: .*sandbox\.({setting})=", result.details["why"]), result.details


@RUNS
def test_limits_can_be_raised() -> None:
    deep = "def f(): return g(5_000)\ndef g(n): return n and g(n - 1)"
    sandbox = SANDBOX.model_copy(update={"recursion_limit": 1_000})
    assert "RecursionError" in score(deep, {"asserts": ["assert f() == 0"]}, Params(), sandbox).details["why"]
    assert score(deep, {"asserts": ["assert f() == 0"]}, Params(), SANDBOX).score == 1.0
    many = {"calls": [{"expected": list(range(250_000))}], "entry_point": "f"}
    assert run("def f(): return list(range(250_000))", many, test_timeout_s=3).score == 1.0
    assert run("print('x' * 1_500_000)", {"stdio": [{"stdout": "x" * 1_500_000}]}).score == 1.0


@RUNS
def test_packages_are_imported_by_code_and_by_tests() -> None:
    numpy = importlib.util.find_spec("numpy")
    if numpy is None or numpy.origin is None:
        pytest.skip("no numpy here")
    code = """
    import numpy as np
    def f(kind): return {"i": np.int64(4), "f": np.float32(0.1), "b": np.bool_(True), "l": [np.int8(1)]}[kind]
    def g(n): return np.arange(n)
    """
    lines = ["f('i') == 4", "f('f') == 0.1", "f('b') == True", "f('l') == [1]", "np.array_equal(g(3), [0, 1, 2])"]
    reference = {"asserts": [f"assert {line}" for line in lines]}
    sandbox = SANDBOX.model_copy(update={"packages": (Path(numpy.origin).parents[1],)})
    assert score(textwrap.dedent(code), reference, Params(), sandbox).score == 1.0
    with pytest.raises(InvalidReferenceError, match="No module named 'numpy'"):
        score("def f(kind): pass\ndef g(n): pass", reference, Params(), SANDBOX)
    with pytest.raises(UnavailableError, match="is no folder"):
        score(SQUARE, ASSERTS, Params(), SANDBOX.model_copy(update={"packages": (Path("/nowhere"),)}))


@pytest.mark.parametrize(
    "reference",
    [
        {"asserts": ["assert square(2) == 'TOPSECRET'", "assert square(3) is None"]},
        {"calls": [{"args": [2], "expected": ["TOPSECRET"]}], "entry_point": "square"},
        {"stdio": [{"stdin": "2", "stdout": "TOPSECRET"}]},
        {"tests": "def check(candidate):\n    assert candidate(2) == {'TOPSECRET'}", "entry_point": "square"},
    ],
)
def test_expected_values_are_not_sent_into_the_sandbox(reference: dict[str, Any]) -> None:
    cases = read(reference)
    assert "TOPSECRET" in repr([case.expected for case in cases])
    assert b"TOPSECRET" not in message({"tests": [dict(case.job) for case in cases]}, MAGIC_NUMBER.hex())


# References


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        (None, "no tests"),
        ({}, "no tests"),
        ({"asserts": []}, "no tests"),
        ({"asserts": ["assert f( == 3"]}, "does not compile"),
        ({"asserts": [""]}, "is empty"),
        ({"asserts": ["x = f(1)"]}, "general code belongs under tests"),
        ({"asserts": ["assert 1 == 1"]}, "general code belongs under tests"),
        ({"asserts": [3]}, "no text"),
        ({"tests": "   \n"}, "is empty"),
        ({"tests": "x = 1"}, "asserts nothing"),
        ({"tests": "def f(:"}, "does not compile"),
        ({"tests": "return 1"}, "does not compile"),
        ({"tests": {"a": 1}}, "no list"),
        ({"calls": [{"args": [1]}], "entry_point": "f"}, '"expected"'),
        ({"calls": [{"args": [1], "expected": 1}]}, "names no function"),
        ({"calls": [{"args": 1, "expected": 1}], "entry_point": "f"}, "args is a list"),
        ({"stdio": [{"stdin": "x"}]}, '"stdout"'),
        ({"tests": "assert f()", "entry_point": "f()"}, "no identifier"),
        ({"asserts": ["assert f() == 1"], "setup": "import"}, "does not compile"),
        ({"asserts": ["assert f() == 1"] * 1001}, "1000 are the limit"),
    ],
)
def test_broken_references_are_null(reference: dict[str, Any] | None, says: str) -> None:
    with pytest.raises(InvalidReferenceError, match=says):
        score(SQUARE, reference, Params(), SANDBOX)


def test_no_sandbox_is_unavailable_and_a_broken_one_is_its_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    from reward_service.rewards import code as module

    def unavailable(settings: SandboxSettings) -> str:
        raise SandboxUnavailableError("none here")

    def broken(*args: object, **kwargs: object) -> Any:
        raise SandboxFaultError("fork: Resource temporarily unavailable")

    monkeypatch.setattr(module, "backend_of", unavailable)
    with pytest.raises(UnavailableError, match="none here") as caught:
        score(SQUARE, ASSERTS, Params(), SANDBOX)
    assert caught.value.reason == "unavailable"
    monkeypatch.setattr(module, "backend_of", lambda settings: "namespaces")
    monkeypatch.setattr(module, "run_tests", broken)
    with pytest.raises(NotScorableError, match="the sandbox failed: fork") as failed:
        score(SQUARE, ASSERTS, Params(), SANDBOX)
    assert failed.value.reason == "verifier_error"


@RUNS
def test_the_reward_is_made_anew_from_its_settings() -> None:
    reward = pickle.loads(pickle.dumps(make_code_reward(SANDBOX)))
    assert isinstance(reward, CodeReward)
    assert reward.sandbox == SANDBOX
    assert reward.version == REWARD.version
    assert reward.deadline_s is not None
    assert reward.deadline_s > SANDBOX.total_s
    assert reward.apply(Task(SQUARE, ASSERTS), Params()).score == 1.0


# Pure parts


@pytest.mark.parametrize(
    ("completion", "rule", "code"),
    [
        ("x = 1", "last_block", "x = 1"),
        ("a\n```python\nx\n```\nb\n```py\ny\n```\n", "last_block", "y\n"),
        ("```python\nx\n```\n```text\nout\n```", "last_block", "x\n"),
        ("```\nx\n```", "last_block", "x\n"),
        ("```python\nx", "last_block", "x"),
        ("```json\n{}\n```", "last_block", None),
        ("```python\nx\n```\n```python\ny\n```", "only_block", None),
        ("```python\nx\n```\n```python\ny\n```", "all_blocks", "x\n\ny\n"),
        ("```python\nx\n```", "whole", "```python\nx\n```"),
        ("````python\ns = '''\n```\n'''\n````", "last_block", "s = '''\n```\n'''\n"),
        ("~~~Python\nx\n~~~", "last_block", "x\n"),
    ],
)
def test_extraction(completion: str, rule: str, code: str | None) -> None:
    assert extract(completion, rule)[0] == code


def test_a_megabyte_of_fences_is_read_in_one_pass() -> None:
    assert len(fenced_blocks("```\n```\n" * 125_000)) == 125_000
    assert fenced_blocks("`" * 1_000_000) == [Block("", "", closed=False)]


def test_check_of_assertions_never_brings_its_values_into_the_sandbox() -> None:
    check = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate('a') is None"
    jobs = [case.job for case in read({"tests": check, "entry_point": "f"})]
    assert [job["expr"] for job in jobs] == ["f(2)", "f('a')"]
    assert "4" not in repr(jobs)


class Odd(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return iter([99])

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        (1, 1, True), (1, True, True), (1, 1.0, True), (1, 2, False), (10**30, 10**30, True),
        (10**400, 1.5, False), (0.1 + 0.2, 0.3, True), (0.3001, 0.3, False), (float("nan"), float("nan"), True),
        (float("inf"), float("inf"), True), (1 + 2j, 1 + 2j, True), ("a", "a", True), ("1", 1, False),
        (None, None, True), (None, 0, False), (b"a", b"a", True), (b"a", "a", False), ((1, 2), (1, 2), True),
        ([1, 2], (1, 2), False), ([1], [1, 2], False), ({1, 2}, {2, 1}, True), (frozenset({1}), {1}, True),
        ({(1, "a")}, {(1, "a")}, True), ({1: [2.0]}, {1: [2]}, True), ({1: 2}, {1: 3}, False), ({}, set(), False),
        (Odd([1]), [1], True), (Odd([1]), [99], False), (object(), object(), False), ("\ud800", "\ud800", True),
    ],
)  # fmt: skip
def test_values_are_compared_outside_by_what_they_are(got: object, expected: object, same: bool) -> None:
    assert matches(parse(encode(got)), expected, Tolerance()) is same
    if type(got) is not Odd:
        assert repr(plain(got)) == repr(got)


@pytest.mark.parametrize("text", ["", "[", "[1", '["x", 1]', "[]", '["d", [[1]]]', "7", "[" * 10**6])
def test_malformed_values_are_no_values(text: str) -> None:
    with pytest.raises(MalformedValueError):
        matches(parse(text), {1: 2}, Tolerance())


def test_a_malformed_number_is_no_value() -> None:
    with pytest.raises(MalformedValueError):
        matches(parse('["i", "zz"]'), 1, Tolerance())


def test_large_and_deep_values_are_refused_or_cut() -> None:
    with pytest.raises(TooLargeError):
        encode([0] * 300_000)
    deep: list[Any] = []
    deep.append(deep)
    assert not matches(parse(encode(deep)), deep[:1], Tolerance())


def test_truth_is_that_of_the_value() -> None:
    for got in (0, 0.0, "", [], {}, None, False):
        assert not is_true(parse(encode(got)))
    for got in (1, float("nan"), "0", [0], True):
        assert is_true(parse(encode(got)))


def test_output_by_lines_tokens_or_exactly() -> None:
    assert same_output("a  \nb\n\n", "a\nb", Params())
    assert not same_output(" a", "a", Params())
    assert not same_output("a\n", "a", Params(stdout="exact"))
    assert same_output("1.0000000001  2", "1.0\n2", Params(stdout="tokens"))
    assert not same_output("1.1 2", "1 2", Params(stdout="tokens"))
    assert not same_output("nan", "1", Params(stdout="tokens"))


def test_broken_tests_are_a_value_error() -> None:
    with pytest.raises(BrokenTestsError):
        read({"stdio": "x"})
