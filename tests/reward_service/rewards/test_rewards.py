"""What earns what: the rewards' definitions as tables, tricks included. A new trick gets a new line here."""

from __future__ import annotations

import time
from typing import Any

import pytest

from reward_service.registry import BUILTIN_REWARDS
from reward_service.rewards.base import InvalidReferenceError, definition_hash
from reward_service.sandbox.program import INSIDE
from reward_service.text.answers import answer_lines
from reward_service.types import ANSWER_PREFIX

GOOD = f"48 / 2 = 24, 48 + 24 = 72.\n{ANSWER_PREFIX} 72"
MEGABYTE = 2**20
GSM8K = ("gsm8k_format", "gsm8k_correctness", "last_number")

# (what, completion, format, correctness, last number), the reference being 72
CASES: list[tuple[str, str, float, float, float]] = [
    ("the answer as asked for", GOOD, 0.5, 1.0, 1.0),
    ("nothing else", f"{ANSWER_PREFIX} 72", 0.5, 1.0, 1.0),
    ("line end behind it", f"{GOOD}\n", 0.5, 1.0, 1.0),
    ("carriage returns", f"So:\r\n{ANSWER_PREFIX} 72\r\n", 0.5, 1.0, 1.0),
    ("blanks around the line", f"So:\n  {ANSWER_PREFIX} 72 \t", 0.5, 1.0, 1.0),
    ("a sentence ends", f"{ANSWER_PREFIX} 72.", 0.5, 1.0, 1.0),
    ("currency", f"{ANSWER_PREFIX} $72", 0.5, 1.0, 1.0),
    ("decimals", f"{ANSWER_PREFIX} 72.00", 0.5, 1.0, 1.0),
    ("percent", f"{ANSWER_PREFIX} 72%", 0.5, 1.0, 1.0),
    ("unit", f"{ANSWER_PREFIX} 72 clips", 0.5, 1.0, 1.0),
    ("fraction", f"{ANSWER_PREFIX} 144/2", 0.5, 1.0, 1.0),
    ("scientific", f"{ANSWER_PREFIX} 7.2e1", 0.5, 1.0, 1.0),
    ("within the tolerance", f"{ANSWER_PREFIX} 72.001", 0.5, 1.0, 1.0),
    ("beyond the tolerance", f"{ANSWER_PREFIX} 72.0011", 0.5, 0.0, 0.0),
    ("wrong", f"{ANSWER_PREFIX} 71", 0.5, 0.0, 0.0),
    ("wrong sign", f"{ANSWER_PREFIX} -72", 0.5, 0.0, 0.0),
    ("empty", "", 0.0, 0.0, 0.0),
    ("no answer line", "The final answer is 72", 0.0, 0.0, 1.0),
    ("the data set's own form is not this one", "#### 72", 0.0, 0.0, 1.0),
    ("prefix alone", ANSWER_PREFIX, 0.0, 0.0, 0.0),
    ("prefix with blanks", f"72 {ANSWER_PREFIX}   ", 0.0, 0.0, 1.0),
    ("another case", GOOD.lower(), 0.0, 0.0, 1.0),
    ("two blanks before the number", f"{ANSWER_PREFIX}  72", 0.0, 1.0, 1.0),
    ("no blank before the number", f"{ANSWER_PREFIX}72", 0.0, 1.0, 1.0),
    ("a colon", f"{ANSWER_PREFIX}: 72", 0.0, 0.0, 1.0),
    ("five hashes", f"#{ANSWER_PREFIX} 72", 0.0, 0.0, 1.0),
    ("a sentence behind the number", f"{ANSWER_PREFIX} 72 because I say so", 0.0, 0.0, 1.0),
    ("denied", f"{ANSWER_PREFIX} not 72", 0.0, 0.0, 1.0),
    ("isn't", f"{ANSWER_PREFIX}n't 72", 0.0, 0.0, 1.0),
    # hedging
    ("two answers, the right one first", f"{GOOD}\n{ANSWER_PREFIX} 73", 0.0, 0.0, 0.0),
    ("two answers, the right one last", f"{ANSWER_PREFIX} 73\n{GOOD}", 0.0, 0.0, 1.0),
    ("the same answer twice", f"{GOOD}\n{ANSWER_PREFIX} 72.0", 0.0, 1.0, 1.0),
    ("a right answer and an empty one", f"{GOOD}\n{ANSWER_PREFIX}", 0.0, 0.0, 1.0),
    ("5 or 6", f"{ANSWER_PREFIX} 72 or 73", 0.0, 0.0, 0.0),
    ("a list", f"{ANSWER_PREFIX} 71, 72", 0.0, 0.0, 1.0),
    ("a range", f"{ANSWER_PREFIX} 71-73", 0.0, 0.0, 0.0),
    ("an equation", f"{ANSWER_PREFIX} 48 + 24 = 72", 0.0, 0.0, 1.0),
    ("two on one line", f"{ANSWER_PREFIX} 72 {ANSWER_PREFIX} 73", 0.0, 0.0, 0.0),
    ("behind a vertical tab", f"{ANSWER_PREFIX} 72\v{ANSWER_PREFIX} 73", 0.0, 0.0, 0.0),
    ("behind a line separator", f"{ANSWER_PREFIX} 72\u2028{ANSWER_PREFIX} 73", 0.0, 0.0, 0.0),
    ("behind a carriage return", f"{ANSWER_PREFIX} 72\r{ANSWER_PREFIX} 73", 0.0, 0.0, 0.0),
    ("every number there is", "\n".join(f"{ANSWER_PREFIX} {n}" for n in range(100)), 0.0, 0.0, 0.0),
    # the line quoted: only a line that begins with the prefix is an answer
    ("quoted in the reasoning", f'I end with "{ANSWER_PREFIX} 5".\n{ANSWER_PREFIX} 72', 0.5, 1.0, 1.0),
    ("only quoted", f'I shall end with "{ANSWER_PREFIX} 72".', 0.0, 0.0, 1.0),
    ("the template, then the answer", f"{ANSWER_PREFIX} N\n{ANSWER_PREFIX} 72", 0.0, 0.0, 1.0),
    ("answer before any reasoning", f"{ANSWER_PREFIX} 72\n48 + 24 is that.", 0.5, 1.0, 0.0),
    ("the next question made up", f"{GOOD}\n\nQ: And 5?\nA: 5\n{ANSWER_PREFIX} 5", 0.0, 0.0, 0.0),
    # not numbers
    ("nan", f"{ANSWER_PREFIX} nan", 0.0, 0.0, 0.0),
    ("inf", f"{ANSWER_PREFIX} inf", 0.0, 0.0, 0.0),
    ("1e999", f"{ANSWER_PREFIX} 1e999", 0.0, 0.0, 0.0),
    ("division by zero", f"{ANSWER_PREFIX} 72/0", 0.0, 0.0, 0.0),
    ("another script's digits", f"{ANSWER_PREFIX} ٧٢", 0.0, 0.0, 0.0),
    ("full-width digits", f"{ANSWER_PREFIX} ７２", 0.0, 0.0, 0.0),
    ("mixed scripts", f"{ANSWER_PREFIX} 7２", 0.0, 0.0, 0.0),
    ("words", f"{ANSWER_PREFIX} seventy-two", 0.0, 0.0, 0.0),
    ("decorated", f"{ANSWER_PREFIX} **72**", 0.0, 0.0, 1.0),
    ("boxed", f"{ANSWER_PREFIX} \\boxed{{72}}", 0.0, 0.0, 1.0),
    # invisible characters
    ("zero-width within the number", f"{ANSWER_PREFIX} 7\u200b2", 0.0, 0.0, 0.0),
    ("zero-width before the number", f"{ANSWER_PREFIX} \u200b72", 0.0, 0.0, 1.0),
    ("zero-width before the line", f"\u200b{ANSWER_PREFIX} 72", 0.0, 0.0, 1.0),
    ("no-break space", f"{ANSWER_PREFIX}\u00a072", 0.0, 0.0, 1.0),
    ("a null byte", f"{ANSWER_PREFIX} 72\0", 0.0, 0.0, 1.0),
    ("right-to-left override", f"{ANSWER_PREFIX} \u202e27", 0.0, 0.0, 0.0),
    ("a no-break space within", f"{ANSWER_PREFIX} 7\u00a02", 0.0, 0.0, 0.0),
    ("a soft hyphen within", f"{ANSWER_PREFIX} 7\u00ad2", 0.0, 0.0, 0.0),
    ("a byte order mark before the line", f"\ufeff{ANSWER_PREFIX} 72", 0.0, 0.0, 1.0),
    ("zero-width within the prefix", "#### The final\u200b answer is 72", 0.0, 0.0, 1.0),
    ("a combining overlay", f"{ANSWER_PREFIX} 72\u0338", 0.0, 0.0, 1.0),
    # the reference echoed with decoration
    ("quoted answer", f'{ANSWER_PREFIX} "72"', 0.0, 0.0, 1.0),
    ("in brackets", f"{ANSWER_PREFIX} (72)", 0.0, 0.0, 1.0),
    ("as code", f"{ANSWER_PREFIX} `72`", 0.0, 0.0, 1.0),
    ("as a reference", f'{ANSWER_PREFIX} {{"final_answer": "72"}}', 0.0, 0.0, 1.0),
    ("about", f"{ANSWER_PREFIX} about 72", 0.0, 0.0, 1.0),
    ("a bound", f"{ANSWER_PREFIX} >= 72", 0.0, 0.0, 1.0),
    ("plus or minus", f"{ANSWER_PREFIX} 72 ± 5", 0.0, 0.0, 0.0),
    ("two numbers side by side", f"{ANSWER_PREFIX} 72 73", 0.0, 0.0, 0.0),
    ("hexadecimal", f"{ANSWER_PREFIX} 0x48", 0.0, 0.0, 0.0),
    ("underscores", f"{ANSWER_PREFIX} 7_2", 0.0, 0.0, 0.0),
    ("superscript digits", f"{ANSWER_PREFIX} 72²", 0.5, 0.0, 0.0),
    ("a rate", f"{ANSWER_PREFIX} $72/hour", 0.5, 1.0, 1.0),
    ("a rate in words", f"{ANSWER_PREFIX} $72 per day.", 0.5, 1.0, 1.0),
    ("a rate of a rate", f"{ANSWER_PREFIX} 72/hour/day", 0.0, 0.0, 1.0),
    ("quoted in a block quote", f"> {ANSWER_PREFIX} 5\n{ANSWER_PREFIX} 72", 0.5, 1.0, 1.0),
    ("as a list item", f"- {ANSWER_PREFIX} 72", 0.0, 0.0, 1.0),
    ("in a fence", f"```\n{ANSWER_PREFIX} 72\n```", 0.5, 1.0, 1.0),
    ("a template in a fence", f"```\n{ANSWER_PREFIX} 5\n```\n{ANSWER_PREFIX} 72", 0.0, 0.0, 1.0),
    # floods
    ("#### flood", "####" * 1000, 0.0, 0.0, 0.0),
    ("#### flood, then the answer", "####\n" * 1000 + GOOD, 0.5, 1.0, 1.0),
    ("closing brackets", f"{ANSWER_PREFIX} 72" + "}" * 5000, 0.0, 0.0, 1.0),
    ("a long number", f"{ANSWER_PREFIX} " + "72" * 5000, 0.0, 0.0, 0.0),
]


def run(name: str, completion: str, reference: Any, **params: Any) -> Any:
    reward = BUILTIN_REWARDS[name]
    return reward.score(completion, reference, reward.params(**params))


@pytest.mark.parametrize(("what", "completion", "fmt", "correct", "last"), CASES, ids=[case[0] for case in CASES])
def test_table(what: str, completion: str, fmt: float, correct: float, last: float) -> None:
    reference = {"final_answer": "72"}
    assert tuple(run(name, completion, reference).score for name in GSM8K) == (fmt, correct, last)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("1,080", "1080"),
        ("$18.00", "18"),
        (72, "72"),
        (0.5, "1/2"),
        ("-10", "-10"),
        ("5 million", "5,000,000"),
        (-0.0, "0"),
    ],
)
def test_references_are_read_like_answers(reference: Any, answer: str) -> None:
    completion = f"{ANSWER_PREFIX} {answer}"
    assert run("gsm8k_correctness", completion, {"final_answer": reference}).score == 1.0
    assert run("last_number", completion, {"final_answer": reference}).score == 1.0


@pytest.mark.parametrize(
    "reference",
    [
        None,
        {},
        {"answer": "72"},
        *(
            {"final_answer": answer}
            for answer in (None, "", "seventy", "nan", "1e999", True, [], float("inf"), 10**400)
        ),
    ],
)
@pytest.mark.parametrize("name", ["gsm8k_correctness", "last_number"])
def test_references_that_are_none(name: str, reference: Any) -> None:
    with pytest.raises(InvalidReferenceError):
        run(name, GOOD, reference)


def test_format_looks_at_no_reference() -> None:
    assert run("gsm8k_format", GOOD, None).score == 0.5


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (f"{ANSWER_PREFIX} 72 or 73", 0.5),
        (f"{ANSWER_PREFIX} 72\n{ANSWER_PREFIX} 73", 0.5),
        (f"{ANSWER_PREFIX} seventy", 0.0),
        (f"{ANSWER_PREFIX} ٧٢", 0.0),
        (f"I end with {ANSWER_PREFIX} 72", 0.0),
    ],
)
def test_lax_format(completion: str, score: float) -> None:
    assert run("gsm8k_format", completion, None, rule="lax").score == score


def test_the_prefix_is_a_parameter() -> None:
    assert run("gsm8k_correctness", "so\n#### 72", {"final_answer": "72"}, prefix="####").score == 1.0
    assert run("gsm8k_format", "so\n#### 72", None, prefix="####").score == 0.5


def test_details_say_what_was_read() -> None:
    assert run("gsm8k_correctness", GOOD, {"final_answer": "72"}).details == {"extracted": "72"}
    assert run("gsm8k_correctness", f"{ANSWER_PREFIX} $5.", {"final_answer": "72"}).details["extracted"] == "$5"
    assert run("gsm8k_correctness", "5", {"final_answer": "72"}).details["extracted"] is None


@pytest.mark.parametrize("name", GSM8K)
@pytest.mark.parametrize(
    "completion",
    [
        "#" * MEGABYTE,
        ANSWER_PREFIX * (MEGABYTE // len(ANSWER_PREFIX)),
        f"{ANSWER_PREFIX} 72\n" * (MEGABYTE // 28),
        f" {ANSWER_PREFIX}" * (MEGABYTE // 24),
        "\n" * MEGABYTE + GOOD,
        "9" * MEGABYTE,
        f"{ANSWER_PREFIX} 72" + " " * MEGABYTE,
        " " * MEGABYTE + f"{ANSWER_PREFIX} 72",
    ],
    ids=["hashes", "one line", "many lines", "blanks and prefixes", "line feeds", "digits", "blanks", "blanks before"],
)
def test_a_megabyte_is_no_trouble(name: str, completion: str) -> None:
    start = time.process_time()
    result = run(name, completion, {"final_answer": "72"})
    assert time.process_time() - start < 2.0
    assert len(str(result.details)) < 1000


def test_answer_lines_in_order() -> None:
    lines = list(answer_lines(f"{ANSWER_PREFIX} 1\nx {ANSWER_PREFIX} 2\n {ANSWER_PREFIX} 3 or 4\n"))
    assert [(line.text, line.well_formed) for line in lines] == [("1", True), ("3 or 4", False)]


def test_versions_follow_the_definition() -> None:
    versions = {name: reward.version for name, reward in BUILTIN_REWARDS.items()}
    assert len(set(versions.values())) == len(versions)
    assert all(len(version) == 64 for version in versions.values())
    assert versions["gsm8k_format"] == definition_hash("reward_service.rewards.gsm8k.answer_format")
    code = definition_hash("reward_service.rewards.code", *INSIDE)
    assert versions["code"] == code != definition_hash("reward_service.rewards.code"), (
        "what is sent to the sandbox counts"
    )


def test_scores_stay_in_their_range() -> None:
    for _, completion, *_ in CASES:
        for name in GSM8K:
            reward = BUILTIN_REWARDS[name]
            assert reward.low <= run(name, completion, {"final_answer": "72"}).score <= reward.high
