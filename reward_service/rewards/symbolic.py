"""1.0 if every answer in the completion is an expression that equals the reference's for all values, else 0.0.

Expressions are written in one line, `2x^2 + sin(pi/3)`, as `reward_service.text.plain` defines it (for LaTeX there is
`math`); numbers are exact, so 0.333 is not 1/3. `assume` says what variables stand for: sqrt(x^2) is x for positive
ones only. Values at points that nobody can know refute, simplification proves (see `equivalent`); an answer that could
be shown neither equal nor different is null.

The answers are the answer lines and the boxes, or what `answer_in` says (see `reward_service.text.extraction`), and
all of them must be right. What is not such an expression, or is too large for one (1000 characters, 300 tokens, 40
levels, 1000 digits, a power above 10,000, of variables above 50), scores 0.

`final_answer` is an expression or a number, or a list of these of which any one will do. With the reference's `form`
`expanded` an answer has no brackets and no more terms than the longest of these: what was to be expanded or simplified
is not its own answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

from pydantic import Field

from reward_service.rewards.base import (
    FINAL_ANSWER,
    AnswerParams,
    InvalidReferenceError,
    NotScorableError,
    Reference,
    Reward,
    acceptable_answers,
)
from reward_service.text.expressions import ExpressionError, equivalent
from reward_service.text.extraction import read_answers, shown, undecorated
from reward_service.text.labels import answer_of
from reward_service.text.plain import parse_expression
from reward_service.types import ReferenceKeys, RewardScore


class Params(AnswerParams):
    """Parameters of `symbolic`."""

    assume: Literal["complex", "real", "positive"] = Field("real", description="What every variable stands for.")


def score(completion: str, reference: Reference, params: Params) -> RewardScore:
    """1.0 or 0.0; `details["extracted"]` is the first answer, None if there is none."""
    expected = [_parse_reference(answer_of(text), params.assume) for text in acceptable_answers(reference)]
    answers = read_answers(completion, params, params.answer_in)
    if answers.why is not None:
        return RewardScore(score=0.0, details={"extracted": None, "why": answers.why})
    details = {"extracted": shown(answers.texts[0])}
    if why := _has_other_form(answers.texts, reference):
        return RewardScore(score=0.0, details={**details, "why": why})
    try:
        found = [parse_expression(text, params.assume) for text in answers.texts]
    except ExpressionError as error:
        return RewardScore(score=0.0, details={**details, "why": f"an answer is not an expression: {error}"})
    verdicts = [_is_any_of(expected, expression, params) for expression in found]
    if False in verdicts:
        text = answers.texts[verdicts.index(False)]
        return RewardScore(score=0.0, details={**details, "why": f"an answer says {shown(text)}"})
    if None in verdicts:
        text = answers.texts[verdicts.index(None)]
        raise NotScorableError(f"{shown(text)} could be shown neither equal to the reference nor different from it")
    return RewardScore(score=1.0, details=details)


_FORMS = ("any", "expanded")
_BETWEEN_TERMS = re.compile(r"(?<=[\w)!])\s*[-+]")


def _has_other_form(texts: Sequence[str], reference: Reference) -> str | None:
    """Why an answer has not the form that the reference asks for; None if all have it."""
    form = (reference or {}).get("form", "any")
    if form not in _FORMS:
        raise InvalidReferenceError(f"form {form!r:.100} is none of {', '.join(_FORMS)}")
    if form == "any":
        return None
    most = max(_num_terms(answer_of(text)) for text in acceptable_answers(reference))
    for text in texts:
        if "(" in text or _num_terms(text) > most:
            return f"{shown(text)} is not written out with at most {most} terms"
    return None


def _num_terms(text: str) -> int:
    return 1 + len(_BETWEEN_TERMS.findall(text))


def _is_any_of(expected: list[Any], found: Any, params: Params) -> bool | None:
    verdicts = [equivalent(one, found, params.assume) for one in expected]
    return True if True in verdicts else None if None in verdicts else False


@lru_cache(maxsize=1024)  # a group of completions shares its reference
def _parse_reference(text: str, assume: Literal["complex", "real", "positive"]) -> Any:
    try:
        return parse_expression(undecorated(text), assume)
    except ExpressionError as error:
        raise InvalidReferenceError(f"final_answer {text!r:.100} is not an expression: {error}") from None


REWARD = Reward(
    name="symbolic",
    params=Params,
    score=score,
    keys=ReferenceKeys(required=FINAL_ANSWER.required, optional=("form",)),
    deadline_s=5.0,
    preload=("sympy", "reward_service.rewards.warm.symbolic"),
)
