"""1.0 if every answer in the completion names the reference's option of a multiple choice, else 0.0.

An answer names an option by its letter, in any case: `B`, `(B)`, `B.`, `B)`, `**B**`, `\\boxed{B}`, `option B`. If the
reference has the options' texts, also by letter and text (`B. Paris`: both must be of one option) or by the text alone,
where only one option has it; case and blanks do not matter there. Anything else names none: "A or B", "A, B",
"not B", "AB", a letter beyond the last option, letters of other scripts.

The answers are the answer lines and the boxes, or what `answer_in` says (see `reward_service.text.extraction`), and
all of them must name the right option, each one only.

`final_answer` is the letter. `options`, if given, is a list of texts, A first, or a mapping from letters to texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, Final

from reward_service.rewards.base import AnswerParams, InvalidReferenceError, Reference, Reward, first_paragraph
from reward_service.text.extraction import read_answers, shown, undecorated
from reward_service.types import ReferenceKeys, RewardScore

MAX_ANSWER_CHARS: Final = 2000

_LETTER: Final = re.compile(
    r"(?:(?:[Oo]ption|[Cc]hoice|[Aa]nswer)[ ])?"
    r"(?P<open>\()?(?P<letter>[A-Za-z])(?(open)\)|(?![A-Za-z0-9]))[.:)]?(?:\s+(?P<text>\S.*))?",
    re.DOTALL,
)


def score(completion: str, reference: Reference, params: AnswerParams) -> RewardScore:
    """1.0 or 0.0; `details["extracted"]` is the letter of the first answer, None if it names no option."""
    options = _options(reference)
    expected = _expected(reference, options)
    answers = read_answers(completion, params, params.answer_in)
    if answers.why is not None:
        return RewardScore(score=0.0, details={"extracted": None, "why": answers.why})
    letters = [named_option(text, options) for text in answers.texts]
    for text, letter in zip(answers.texts, letters, strict=True):
        if letter != expected:
            why = f"an answer says {letter}" if letter else f"an answer names no option: {shown(text)}"
            return RewardScore(score=0.0, details={"extracted": letters[0], "why": why})
    return RewardScore(score=1.0, details={"extracted": expected})


def named_option(answer: str, options: Mapping[str, str | None]) -> str | None:
    """The letter of the one option that `answer` names, None if it names none or more."""
    if len(answer) > MAX_ANSWER_CHARS:
        return None
    match = _LETTER.fullmatch(answer)
    if match is not None and (letter := match["letter"].upper()) in options:
        if match["text"] is None:
            return letter
        if _plain(match["text"]) == options[letter]:
            return letter
    by_text = [letter for letter, text in options.items() if text is not None and text == _plain(answer)]
    return by_text[0] if len(by_text) == 1 else None


def _plain(text: str) -> str:
    return " ".join(undecorated(text).casefold().split())


def _options(reference: Reference) -> dict[str, str | None]:
    """Letter → text in its plain form; without texts every letter is an option."""
    options: Any = None if reference is None else reference.get("options")
    if options is None:
        return dict.fromkeys(ascii_uppercase)
    if isinstance(options, list) and len(options) <= len(ascii_uppercase):
        options = dict(zip(ascii_uppercase, options, strict=False))
    if (
        not isinstance(options, Mapping)
        or not options
        or not all(isinstance(text, str) and key in tuple(ascii_uppercase) for key, text in options.items())
    ):
        raise InvalidReferenceError(f"options {options!r:.100} are neither a list of texts nor texts by letter A to Z")
    return {letter: _plain(text) for letter, text in options.items()}


def _expected(reference: Reference, options: Mapping[str, str | None]) -> str:
    if reference is None or "final_answer" not in reference:
        raise InvalidReferenceError('the reference has no "final_answer"')
    answer = reference["final_answer"]
    letter = re.fullmatch(r"\(?([A-Za-z])\)?[.]?", answer.strip()) if isinstance(answer, str) else None
    if letter is None or letter[1].upper() not in options:
        raise InvalidReferenceError(f"final_answer {answer!r:.100} is not the letter of an option")
    return letter[1].upper()


REWARD = Reward(
    name="choice",
    description=first_paragraph(__doc__),
    low=0.0,
    high=1.0,
    params=AnswerParams,
    score=score,
    keys=ReferenceKeys(required=("final_answer",), optional=("options",)),
)
