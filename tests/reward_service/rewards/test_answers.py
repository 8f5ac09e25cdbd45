"""What earns what where an answer is compared as a whole: math, symbolic, choice and exact; tricks included."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from reward_service.registry import BUILTIN_REWARDS
from reward_service.rewards.base import InvalidReferenceError
from reward_service.types import ANSWER_PREFIX, RewardScore

MEGABYTE = 2**20
LINE = f"{ANSWER_PREFIX} "


def run(name: str, completion: str, reference: Any, **params: Any) -> RewardScore:
    reward = BUILTIN_REWARDS[name]
    result = reward.score(completion, reference, reward.params(**params))
    assert result.score is not None
    assert reward.low <= result.score <= reward.high
    assert len(str(result.details)) < 1000
    return result


# (what, completion, math, symbolic, exact), the reference being 72
NUMBER_CASES: list[tuple[str, str, float, float, float]] = [
    ("an answer line", f"{LINE}72", 1.0, 1.0, 1.0),
    ("a box", r"so \boxed{72}", 1.0, 1.0, 0.0),
    ("both", f"{LINE}72\nso \\boxed{{72}}", 1.0, 1.0, 1.0),
    ("a box on the line", f"{LINE}\\boxed{{72}}", 1.0, 1.0, 0.0),
    ("decorated", f"{LINE}**$72$**.", 1.0, 1.0, 0.0),
    ("the same written in two ways", f"{LINE}72\n{LINE}144/2", 1.0, 1.0, 0.0),
    ("neither line nor box", "The answer is $72$", 0.0, 0.0, 0.0),
    ("empty", "", 0.0, 0.0, 0.0),
    ("an empty line", LINE, 0.0, 0.0, 0.0),
    ("an empty box", r"\boxed{}", 0.0, 0.0, 0.0),
    ("wrong", f"{LINE}71", 0.0, 0.0, 0.0),
    # more than one guess
    ("lines that disagree", f"{LINE}71\n{LINE}72", 0.0, 0.0, 0.0),
    ("boxes that disagree", r"\boxed{71} no, \boxed{72}", 0.0, 0.0, 0.0),
    ("boxes that disagree, the right one first", r"\boxed{72} or \boxed{71}", 0.0, 0.0, 0.0),
    ("line and box disagree", f"{LINE}72\nor \\boxed{{71}}", 0.0, 0.0, 1.0),
    ("a box in a box", r"\boxed{71 \boxed{72}}", 0.0, 0.0, 0.0),
    ("a second box that is cut off", r"\boxed{72} no, wait: \boxed{71", 0.0, 0.0, 0.0),
    ("every number there is", "".join(rf"\boxed{{{n}}}" for n in range(100)), 0.0, 0.0, 0.0),
    ("5 or 6", f"{LINE}72 or 73", 0.0, 0.0, 0.0),
    ("5 or 6 as text in a box", r"\boxed{72 \text{ or } 73}", 0.0, 0.0, 0.0),
    ("a list", r"\boxed{71, 72}", 0.0, 0.0, 0.0),
    ("a set", r"\boxed{\{71, 72\}}", 0.0, 0.0, 0.0),
    ("dollars around each", f"{LINE}$72$ or $73$", 0.0, 0.0, 0.0),
    ("plus or minus", r"\boxed{\pm 72}", 0.0, 0.0, 0.0),
    ("two lines within a box", r"\boxed{72 \\ 73}", 0.0, 0.0, 0.0),
    ("an interval", r"\boxed{[72, 73]}", 0.0, 0.0, 0.0),
    ("a closed box, then more on the line", f"{LINE}71 \\boxed{{72}}", 0.0, 0.0, 0.0),
    # quoted, or said before any reasoning
    ("the format line quoted", f'I end with "{LINE}5".\n{LINE}72', 1.0, 1.0, 1.0),
    ("the template first", f"{LINE}N\n{LINE}72", 0.0, 0.0, 0.0),
    ("answer before any reasoning", f"{LINE}72\nbecause 48 + 24 is that", 1.0, 1.0, 1.0),
    # not numbers
    ("other digits", f"{LINE}٧٢", 0.0, 0.0, 0.0),
    ("full-width digits", r"\boxed{７２}", 0.0, 0.0, 0.0),
    ("zero-width within", "\\boxed{7\u200b2}", 0.0, 0.0, 0.0),
    ("zero-width before", "\\boxed{\u200b72}", 0.0, 0.0, 0.0),
    ("a null byte", "\\boxed{72\0}", 0.0, 0.0, 0.0),
    ("nan", f"{LINE}nan", 0.0, 0.0, 0.0),
    ("inf", f"{LINE}inf", 0.0, 0.0, 0.0),
    ("infinity", r"\boxed{\infty}", 0.0, 0.0, 0.0),
    ("1e999", f"{LINE}1e999", 0.0, 0.0, 0.0),
    ("division by zero", r"\boxed{72/0}", 0.0, 0.0, 0.0),
    ("words", r"\boxed{\text{seventy-two}}", 1.0, 0.0, 0.0),
    ("the reference echoed", f'{LINE}{{"final_answer": "72"}}', 0.0, 0.0, 0.0),
    # floods
    ("#### flood", "####" * 1000, 0.0, 0.0, 0.0),
    ("closing brackets", r"\boxed{72" + "}" * 5000, 1.0, 1.0, 0.0),
    ("closing brackets on the line", f"{LINE}72" + "}" * 5000, 0.0, 0.0, 0.0),
    ("opening brackets", r"\boxed{" + "(" * 400 + "72" + ")" * 400 + "}", 0.0, 0.0, 0.0),
    ("opening brackets, never closed", r"\boxed{" + "{" * 5000, 0.0, 0.0, 0.0),
    ("much decoration", LINE + r"\text{" * 8000 + "72" + "}" * 8000, 0.0, 0.0, 0.0),
    ("a long number", r"\boxed{" + "72" * 200 + "}", 0.0, 0.0, 0.0),
    ("a tower of powers", r"\boxed{9^{9^{9^{9}}}}", 0.0, 0.0, 0.0),
    ("a tower in the line", f"{LINE}9**9**9**9", 0.0, 0.0, 0.0),
    ("a huge factorial", r"\boxed{99999999!}", 0.0, 0.0, 0.0),
    ("Python", f"{LINE}__import__('os').getpid()", 0.0, 0.0, 0.0),
]


@pytest.mark.parametrize(
    ("what", "completion", "math", "symbolic", "exact"), NUMBER_CASES, ids=[case[0] for case in NUMBER_CASES]
)
def test_numbers(what: str, completion: str, math: float, symbolic: float, exact: float) -> None:
    scores = tuple(run(name, completion, {"final_answer": "72"}).score for name in ("math", "symbolic", "exact"))
    assert scores == (math, symbolic, exact)


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        (r"\frac{1}{2}", "0.5", 1.0),
        (r"\frac12", "1/2", 1.0),
        (r"\frac{1}{3}", "0.333333", 1.0),
        (r"\frac{1}{3}", "0.33", 0.0),
        (r"\{1, 2\}", r"\{2, 1\}", 1.0),
        (r"\{1, 2\}", r"\{1, 2, 3\}", 0.0),
        ("[1, 2)", "[1,2)", 1.0),
        ("[1, 2)", "[1,2]", 0.0),
        (r"(-\infty, 3]", r"(-\infty,3]", 1.0),
        ("x = 5", "5", 1.0),
        ("5", "x = 5", 1.0),
        ("y = 2x + 1", "y = 1 + 2x", 1.0),
        ("y = 2x + 1", "y = 2x", 0.0),
        (r"\sqrt{8}", r"2\sqrt{2}", 1.0),
        ("1000", "1,000", 1.0),
        ("72", r"72\text{ cm}", 1.0),
        ("72", r"72\%", 1.0),
        ("72", "71 = 72", 0.0),  # which is false
        ("72", "72 = 71", 0.0),
        (r"\text{Evelyn}", "Evelyn", 1.0),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", 1.0),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "1", 0.0),
        (r"\boxed{72}", "72", 1.0),
        ("$72$", "72", 1.0),
        (72, "72", 1.0),
        (["71", "72"], "72", 1.0),
    ],
)
def test_math(gold: Any, answer: str, score: float) -> None:
    assert run("math", rf"so \boxed{{{answer}}}", {"final_answer": gold}).score == score


def test_math_anywhere_is_lenient_but_not_where_an_answer_was_committed() -> None:
    reference = {"final_answer": "72"}
    assert run("math", "The answer is $72$", reference, answer_in="anywhere").score == 1.0
    assert run("math", r"\boxed{71}. The answer is $72$", reference, answer_in="anywhere").score == 0.0
    assert run("math", "The answer is $72$" + " " * 5000, reference, answer_in="anywhere").score == 0.0


def test_math_works_in_a_thread() -> None:
    scores: list[float | None] = []
    thread = threading.Thread(target=lambda: scores.append(run("math", r"\boxed{1/2}", {"final_answer": "0.5"}).score))
    thread.start()
    thread.join()
    assert scores == [1.0]


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("x^2 - 1", "(x-1)(x+1)", 1.0),
        ("x^2 - 1", "(x-1)^2", 0.0),
        ("1/2", "0.5", 1.0),
        ("1/3", "0.333", 0.0),
        ("1", "sin(x)^2 + cos(x)^2", 1.0),
        ("y = 2x + 1", "1 + 2x", 1.0),
        ("x", "sqrt(x^2)", 0.0),
        ("x", "x + 10^-40", 0.0),
        ("x", "x + 10^-40*y", 0.0),
        ("x", "x,y", 0.0),
        ("x", "x or y", 0.0),
        ("x", "foo(x)", 0.0),
        ("x", "9^9^9", 0.0),
        ("x", "exp(exp(exp(9)))", 0.0),
        (["x + 1", "x + 2"], "2 + x", 1.0),
    ],
)
def test_symbolic(gold: Any, answer: str, score: float) -> None:
    assert run("symbolic", LINE + answer, {"final_answer": gold}).score == score


def test_symbolic_assumptions() -> None:
    assert run("symbolic", f"{LINE}sqrt(x^2)", {"final_answer": "x"}, assume="positive").score == 1.0
    assert run("symbolic", f"{LINE}sqrt(x^2)", {"final_answer": "abs(x)"}).score == 1.0
    assert run("symbolic", f"{LINE}sqrt(x^2)", {"final_answer": "abs(x)"}, assume="complex").score == 0.0


OPTIONS = ["London", "Paris", "Rome", "paris, Texas"]

# (answer, without the options' texts, with them), the reference being B
CHOICES: list[tuple[str, float, float]] = [
    *(
        (answer, 1.0, 1.0)
        for answer in ("B", "b", "(B)", "B.", "B)", "B:", "**B**", "$B$", r"\boxed{B}", r"\text{(B)}")
    ),
    *((answer, 1.0, 1.0) for answer in ("option B", "Option (B).")),
    *((answer, 1.0, 1.0) for answer in ("B. Paris", "(B) paris", r"\textbf{(B) Paris}")),
    *((answer, 0.0, 1.0) for answer in ("Paris", "**Paris**.")),
    ("B. London", 1.0, 0.0),
    *((answer, 0.0, 0.0) for answer in ("A", "A or B", "A, B", "A/B", "B or", "not B", "AB", "BB", "B B", "(B", "[B]")),
    *((answer, 0.0, 0.0) for answer in ("A. Paris", "London or Paris", "B, C and D", "none", "", "2")),
    *((answer, 0.0, 0.0) for answer in ("Β", "Ｂ", "В", "ⓑ", "B\u200b", "\u200bB", "B\0", "B" * 5000)),
]


@pytest.mark.parametrize(("answer", "bare", "with_texts"), CHOICES, ids=[ascii(case[0][:20]) for case in CHOICES])
def test_choice(answer: str, bare: float, with_texts: float) -> None:
    assert run("choice", LINE + answer, {"final_answer": "B"}).score == bare
    assert run("choice", LINE + answer, {"final_answer": "B", "options": OPTIONS}).score == with_texts


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (r"\boxed{B}", 1.0),
        (r"\boxed{A} \boxed{B}", 0.0),
        (f"{LINE}B\n{LINE}(b)", 1.0),
        ("\n".join(f"{LINE}{letter}" for letter in "ABCD"), 0.0),
        ("B", 0.0),
    ],
)
def test_choices_that_disagree(completion: str, score: float) -> None:
    assert run("choice", completion, {"final_answer": "(B)"}).score == score


def test_options_by_letter() -> None:
    reference = {"final_answer": "b", "options": {"A": "x", "B": "y", "C": "y"}}
    assert run("choice", f"{LINE}(B) y", reference).details == {"extracted": "B"}
    assert run("choice", f"{LINE}y", reference).score == 0.0  # two options say so
    assert run("choice", f"{LINE}D", reference).score == 0.0


@pytest.mark.parametrize(
    ("completion", "params", "score"),
    [
        (f"{LINE}Paris ", {}, 1.0),
        (f"{LINE}Paris.", {}, 0.0),
        (f"{LINE}paris", {}, 0.0),
        (f"{LINE}PARIS", {"ignore_case": True}, 1.0),
        (f"{LINE}Paris\u200b", {"nfkc": True, "ignore_case": True}, 0.0),
        (f"{LINE}Ｐaris", {}, 0.0),
        (f"{LINE}Ｐaris", {"nfkc": True}, 1.0),
        (f"{LINE}Paris or Rome", {}, 0.0),
        (f"{LINE}Paris\n{LINE}Rome", {}, 0.0),
        (" Paris\n", {"answer_in": "whole"}, 1.0),
        (" Paris\n", {"answer_in": "whole", "strip": False}, 0.0),
        ("It is Paris", {"answer_in": "whole"}, 0.0),
        ("<answer>\nParis\n</answer>", {"answer_in": "tags"}, 1.0),
        ("<a>Paris</a>", {"answer_in": "tags", "tag": "a"}, 1.0),
        ("<answer>Paris</answer><answer>Rome</answer>", {"answer_in": "tags"}, 0.0),
        ("<answer>Paris</answer><answer>Rome", {"answer_in": "tags"}, 0.0),
        ("<answer>Rome<answer>Paris</answer>", {"answer_in": "tags"}, 0.0),
        (f"{LINE}Rome</think>\n{LINE}Paris", {"after": "</think>"}, 1.0),
        (f"{LINE}Paris", {"after": "</think>"}, 0.0),
    ],
)
def test_exact(completion: str, params: dict[str, Any], score: float) -> None:
    assert run("exact", completion, {"final_answer": "Paris"}, **params).score == score


def test_blanks_collapse_on_both_sides() -> None:
    assert run("exact", f"{LINE}a  b", {"final_answer": "a\n b"}, collapse_blanks=True).score == 1.0


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        *(("math", {"final_answer": answer}) for answer in (None, True, "", [], {}, r"\frac{1", "9" * 200, "7\u200b2")),
        *(("symbolic", {"final_answer": answer}) for answer in (None, "", r"\frac{1}{2}", "1/0", "(" * 50)),
        *(("choice", {"final_answer": answer}) for answer in (None, "", "AB", "Paris", 2)),
        ("choice", {"final_answer": "C", "options": ["x", "y"]}),
        ("choice", {"final_answer": "A", "options": "xy"}),
        ("choice", {"final_answer": "A", "options": {"one": "x"}}),
        *(("exact", {"final_answer": answer}) for answer in (None, True, [], [None])),
        *(
            (name, reference)
            for name in ("math", "symbolic", "choice", "exact")
            for reference in (None, {}, {"answer": "A"})
        ),
    ],
)
def test_references_that_do_not_compare(name: str, reference: Any) -> None:
    with pytest.raises(InvalidReferenceError):
        run(name, f"{LINE}72", reference)


@pytest.mark.parametrize("name", ["math", "symbolic", "choice", "exact"])
@pytest.mark.parametrize(
    "piece",
    [
        "#",
        f"{LINE}72\n",
        f"{ANSWER_PREFIX} ",
        "\n",
        "9",
        r"\boxed{A}",
        r"\boxed{",
        r"\boxed{}",
        "{",
        "}",
        "\\",
        "$",
        "**",
    ],
)
@pytest.mark.parametrize("place", ["auto", "tags", "whole"])
def test_a_megabyte_is_no_trouble(name: str, piece: str, place: str) -> None:
    start = time.process_time()
    run(name, piece * (MEGABYTE // len(piece)), {"final_answer": "A"}, answer_in=place)
    run(name, LINE + piece * (MEGABYTE // len(piece)), {"final_answer": "A"}, answer_in=place)
    assert time.process_time() - start < 5.0


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = ("sympy", "math_verify", "jsonschema", "torch")
    code = f"import sys, reward_service.custom; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
