"""1.0 if every answer in the completion is the reference's `final_answer` as mathematics, else 0.0.

Answers are LaTeX or one line of plain mathematics, read by `reward_service.text.latex`: numbers in every common form
(`5\\,000`, `1.5e3`, `1\\frac12`, `0.\\overline{3}`, `1010_2`), expressions, lists, tuples, vectors, sets, intervals and
conditions, matrices, equations, words. They are compared exactly, with sympy: 1/2 is 0.5, `x = 5` is 5, `\\{1,2\\}` is
`2, 1`, `(2,\\infty)` is `x > 2`, 72\\% is 72 and 0.72, 30^\\circ is 30; but `1/2006!` is not `1/2004!`, `A and B` not
`A or B`, `4c` not 4, `5 cm` not `5 m`. A decimal may stand for an exact value that rounds to it, from `float_rounding`
significant digits on; a decimal in the reference stands for what rounds to it, if it has three digits or more.
What contradicts itself (`7 \\approx 7.0001`, `5 + 8 = 12`) is wrong. `\\log` without a base is the natural
or the decimal logarithm, the same throughout answer and reference, as books differ: `\\log 100` is 2 and is `\\ln 100`.
Amounts of one kind count in any unit: 90 minutes are 1.5 hours and `1\\text{ h }30\\text{ min}`, not 90 hours; dollars
are not euros. Sums, products, limits and integrals of one variable are worked out where that is sure and soon done;
others are left to Math-Verify, which is asked only about those that are written with the same signs.

The answers are the answer lines and the boxes, or what `answer_in` says (see `reward_service.text.extraction`).
Every one must be right, or all together the list that the reference is (`\\boxed{1}` and `\\boxed{-2}` for `1, -2`):
answers that disagree score 0, whichever comes last. An answer scores 0 unread if it is longer than `max_chars`, nested
deeper than 30 brackets, has unbalanced braces, a number of more than 100 digits, a tower of numeric powers, or
invisible characters or digits of other scripts. What is slow nevertheless meets the deadline and is null.

`answer_in = "anywhere"` is lenient, for evaluation: if there is neither line nor box, Math-Verify looks for an answer
in the last `tail_chars` characters (an answer stands at the end, and the time of its search grows with the square of
the text's length).

`final_answer` is LaTeX or a number, or a list of these of which any one will do. The comparison is not symmetric: the
reference decides what is compared (a set, an equation, a number) and to how many digits.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from pydantic import Field

from reward_service.rewards.base import (
    FINAL_ANSWER,
    AnswerParams,
    InvalidReferenceError,
    Reference,
    Reward,
    acceptable_answers,
)
from reward_service.text.expressions import ExpressionError
from reward_service.text.extraction import has_balanced_braces, read_answers, shown, undecorated
from reward_service.text.labels import answer_of
from reward_service.text.latex.compare import same
from reward_service.text.latex.structure import read_answer
from reward_service.text.latex.surface import same_text
from reward_service.text.latex.values import Quantity, Value
from reward_service.types import RewardScore

MAX_REFERENCE_CHARS: Final = 2000
MAX_DEPTH: Final = 30

# sympy's ways of saying that there is no such thing, or that the two are of kinds that do not compare; not among them:
# MemoryError and RecursionError, after which the answer is not known, which is not wrong
_SYMPY_REFUSES: Final = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

Readings = tuple[Value | None, ...]
_OPERATORS: Final = re.compile(r"\\(?:sum|prod|int|iint|oint|lim)(?![A-Za-z])")  # what Math-Verify reads for us
_INDEXED: Final = re.compile(r"(?<![A-Za-z])[A-Za-z]_")  # and this it takes for constants, whatever the index
_DECIMAL_COMMA: Final = re.compile(  # beside one number it cannot be a list
    r"[-+]?[€£]?[0-9]+,(?:[0-9]{1,2}|[0-9]{4,}) ?(?:[€£%]|[A-Za-z]+)?"
)
_SCALES: Final = {"k": "thousand", "K": "thousand", "M": "million", "B": "billion"}
_ABBREVIATED: Final = re.compile(r"((?:\\?[$€£])?[0-9]+(?:\.[0-9]+)?)([kKMB])")
_LONG_NUMBER: Final = re.compile(r"[0-9](?:[ ,]?[0-9]){100}")
_NUMERIC_TOWER: Final = re.compile(r"[0-9][ ]*[})]?[ ]*(?:\^|\*\*)[ ]*[{(]*[ ]*[0-9.]+[ ]*(?:\^|\*\*|!)")
_BIG_EXPONENT: Final = re.compile(r"(?:\^|\*\*)[ ]*[{(]*[ ]*-?[0-9]{6}|[0-9]{5}[ ]*!")


class Params(AnswerParams):
    """Parameters of `math`."""

    answer_in: Literal["auto", "line", "boxed", "tags", "whole", "anywhere"] = Field(  # type: ignore[assignment]
        "auto", description="auto: answer lines and boxes; anywhere: and without those, wherever an answer is found."
    )
    max_chars: int = Field(500, ge=1, le=5000, description="A longer answer scores 0.")
    tail_chars: int = Field(2000, ge=100, le=10_000, description="How much of the end `anywhere` looks at.")
    float_rounding: int = Field(
        6, ge=0, le=12, description="Significant digits that a decimal needs at least to stand for an exact reference."
    )


def score(completion: str, reference: Reference, params: Params) -> RewardScore:
    """1.0 or 0.0; `details["extracted"]` is the first answer, None if there is none."""
    golds = [_parse_reference(answer_of(text)) for text in acceptable_answers(reference)]
    place = "auto" if params.answer_in == "anywhere" else params.answer_in
    answers = read_answers(completion, params, place)
    if params.answer_in == "anywhere" and answers.why == "no answer":
        return _score_tail(completion, golds, params)
    if answers.why is not None:
        return RewardScore(score=0.0, details={"extracted": None, "why": answers.why})
    details = {"extracted": shown(answers.texts[0])}
    for text in answers.texts:
        if (why := unreadable(text, params.max_chars)) is not None:
            return RewardScore(score=0.0, details={**details, "why": f"an answer {why}"})
    wrong = [text for text in answers.texts if not _is_right(golds, text, params)]
    parts = 1 < len(answers.texts) == len(wrong)
    if wrong and not (parts and _is_right(golds, ", ".join(answers.texts), params)):
        return RewardScore(score=0.0, details={**details, "why": f"an answer says {shown(wrong[0])}"})
    return RewardScore(score=1.0, details=details)


def unreadable(text: str, max_chars: int) -> str | None:
    """Why a text is not read, None if it is: checks that cost little, before work that costs a lot."""
    if len(text) > max_chars:
        return f"has more than {max_chars} characters"
    if any(unicodedata.category(char) in ("Cf", "Cc", "Co", "Cn") and char not in "\n\t" for char in text):
        return "holds invisible characters"
    if any(char.isdecimal() and not char.isascii() for char in text):
        return "holds digits other than 0 to 9"
    if not has_balanced_braces(text) or "\\boxed" in text or "\\fbox" in text:
        return "has unbalanced braces or a box within"
    return _too_large(text)


def _too_large(text: str) -> str | None:
    if _depth(text) > MAX_DEPTH:
        return f"is nested deeper than {MAX_DEPTH} brackets"
    if _LONG_NUMBER.search(text) or _NUMERIC_TOWER.search(text) or _BIG_EXPONENT.search(text):
        return "holds a number that is too large"
    return None


def _depth(text: str) -> int:
    depth = deepest = 0
    for char in text:
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}":
            depth = max(0, depth - 1)
    return deepest


def _score_tail(completion: str, golds: list[Gold], params: Params) -> RewardScore:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    tail = completion[-params.tail_chars :]
    if (why := _too_large(tail)) is not None:
        return RewardScore(score=0.0, details={"extracted": None, "why": f"the end of the text {why}"})
    found = parse(tail, [LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=0, raise_on_error=True)
    text = next((one for one in found if isinstance(one, str)), None)
    right = text is not None and _is_right(golds, text, params)
    return RewardScore(score=1.0 if right else 0.0, details={"extracted": None if text is None else shown(text)})


@dataclass(frozen=True, slots=True)
class Gold:
    """A reference, read."""

    text: str
    readings: Readings
    """None: our own reader does not know such a thing."""
    parsed: Sequence[Any] = ()
    """What Math-Verify makes of it then, if there is a sum, an integral or the like in it."""


@lru_cache(maxsize=1024)  # a group of completions shares its reference
def _parse_reference(text: str) -> Gold:
    bare = undecorated(text)
    if (why := unreadable(bare, MAX_REFERENCE_CHARS)) is not None:
        raise InvalidReferenceError(f"final_answer {text!r:.100} {why}")
    if not bare:
        raise InvalidReferenceError(f"final_answer {text!r:.100} is empty")
    readings = _read(bare)
    asks = readings[0] is None and _OPERATORS.search(bare) is not None and _INDEXED.search(bare) is None
    return Gold(bare, readings, _parse(bare) if asks else ())


def _read(text: str) -> Readings:
    """What it says; twice where there is a logarithm, once for each base that it may have."""
    return tuple(_read_once(text, base) for base in ((None, 10) if "log" in text else (None,)))


def _read_once(text: str, log_base: int | None) -> Value | None:
    try:
        return read_answer(text, log_base)
    except (ExpressionError, *_SYMPY_REFUSES):
        return None


def _parse(text: str) -> list[Any]:
    """The text as Math-Verify's sympy object; nothing if it is not mathematics.

    Its own time-outs are off: they are made of SIGALRM, which the worker's process may need and a thread cannot have,
    and of exceptions, which code that catches everything survives. The worker is killed from outside instead.
    """
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns in every process that its time-outs are off
    config = LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)
    parsed: list[Any] = parse(f"\\boxed{{{text}}}", [config], parsing_timeout=0, raise_on_error=True)
    return parsed


def _is_right(golds: list[Gold], text: str, params: Params) -> bool:
    if any(same_text(gold.text, text) for gold in golds):
        return True
    readings = _read(text)
    return any(_is_same(gold, readings, text, params.float_rounding) for gold in golds)


def _is_same(gold: Gold, readings: Readings, text: str, digits: int) -> bool:
    try:
        if gold.readings[0] is not None:
            both = [readings]
            if isinstance(gold.readings[0], Quantity) and (plain := _beside_a_number(text)) is not None:
                both.append(_read(plain))
            return any(_says(*pair, digits) for one in both for pair in _pairs(gold.readings, one))
        if _OPERATORS.search(gold.text) and "".join(gold.text.split()) == "".join(text.split()):
            return True
        return bool(gold.parsed) and _letters(gold.text) == _letters(text) and _verify(gold.parsed, _parse(text))
    except _SYMPY_REFUSES:
        return False


def _beside_a_number(text: str) -> str | None:
    """What `1,5` and `12k` can be where one number is asked for: no list, no term; None for other texts."""
    if _DECIMAL_COMMA.fullmatch(text):
        return text.replace(",", ".")
    match = _ABBREVIATED.fullmatch(text)
    return None if match is None else f"{match[1]} {_SCALES[match[2]]}"


def _pairs(golds: Readings, answers: Readings) -> Iterable[tuple[Value | None, Value | None]]:
    """Reference and answer with the same base of logarithms."""
    number = max(len(golds), len(answers))
    return zip(golds * (number // len(golds)), answers * (number // len(answers)), strict=True)


def _says(gold: Value | None, answer: Value | None, digits: int) -> bool:
    return gold is not None and answer is not None and same(gold, answer, digits)


def _letters(text: str) -> list[str]:
    """The signs of a text, sorted: Math-Verify drops what it does not know, and so is asked about their order only."""
    return sorted(re.sub(r"[\s{}]|\\(?:left|right|cdot|[,;:! ])(?![A-Za-z])", "", text))


def _verify(gold: Sequence[Any], found: Sequence[Any]) -> bool:
    """Math-Verify's word, for what our reader does not know: sums, integrals, limits."""
    from math_verify import verify

    ours, theirs = ([one for one in side if not isinstance(one, str)] for side in (gold, found))
    if not ours or not theirs:
        return False
    return bool(verify(ours, theirs, float_rounding=15, numeric_precision=50, timeout_seconds=0, raise_on_error=True))


REWARD: Final = Reward(
    name="math",
    params=Params,
    score=score,
    keys=FINAL_ANSWER,
    deadline_s=5.0,
    preload=("math_verify", "latex2sympy2_extended", "sympy", "reward_service.rewards.warm.mathematics"),
)
