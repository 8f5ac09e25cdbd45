"""1.0 if every answer in the completion names the reference's option of a multiple choice, else 0.0.

An answer names an option by its letter, in any case: `B`, `(B)`, `"B"`, `B.`, `B)`, `**B**`, `\\boxed{B}`,
`\\mathbf{B}`, `option B`, `Answer: B`. If the reference has the options' texts, also by letter and text (`B. Paris`,
`B - Paris`: both must be of one option) or by the text alone, where only one option has it; case, blanks and LaTeX's
marks do not matter there. Without the options' texts a value may stand behind the letter where a sign sets it off:
`\\textbf{(B)}\\ 5`, `B. 5`.
Anything else names none: "A or B", "A, B", "not B", "AB", a letter beyond the last option, letters of other scripts.

The answers are the answer lines and the boxes, or what `answer_in` says (see `reward_service.text.extraction`), and
all of them must name the right option, each one only.

`final_answer` is the letter. `options`, if given, is a list of texts, A first, or a mapping from letters to texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, Final

from reward_service.rewards.base import AnswerParams, InvalidReferenceError, Reference, Reward
from reward_service.text.extraction import has_balanced_braces, read_answers, shown, undecorated
from reward_service.types import ReferenceKeys, RewardScore

MAX_ANSWER_CHARS: Final = 2000

_LABEL: Final = (
    r"(?:(?:(?:so|thus|therefore|the|final|correct|best|right|my)[\s,]+)*(?:option|choice|answer|letter)"
    r"(?:\s+(?:is|(?:would|must|should)\s+be))?\s*:?\s*(?:(?:option|choice)\s+)?)?"
)
_LABELLED: Final = re.compile(rf"(?i:{_LABEL})(?=\S)")
_LETTER: Final = re.compile(
    r"(?P<open>[(\[{])?(?P<letter>[A-Za-z])(?(open)[)\]}]|(?![A-Za-z0-9]))(?P<mark>[.:),]|[ ][-–](?=[ ]))?"
    r"(?:\s+(?P<text>\S.*))?",
    re.DOTALL,
)
_MARKED: Final = re.compile(
    r"\\(?:(?:text|math)(?:bf|rm|it|sf|tt|bb|cal)?|underline|emph|operatorname|boldsymbol|bm)\s*\{([^{}]*)\}"
    r"|\{\\(?:bf|rm|it)\s+([^{}]*)\}|\\(?:bf|rm|it)\{([^{}]*)\}"
)
_SET_OFF: Final = re.compile(
    r"[(\s{]*(?:\(?[A-Za-z]\)?[.:]?\s*(?:\\[,;:! ]|\\q?quad|~)|\\(?:text|math)[a-z]*\s*\{\s*\(?[A-Za-z]\)?[.:]?\s*\})"
)
_UNSEEN: Final = re.compile(
    r"\\(?:(?:left|right|(?:display|text)style|[lL]arge|LARGE|[hH]uge|checkmark)(?![A-Za-z])|(?:rm|bf|it)(?= ))\s*"
)
_QUOTED: Final = re.compile(r"(?s)(?:([\"'_])|<)([^\"'_<>]+)(?(1)\1|>)")
_SPACES: Final = re.compile(r"\\(?:[,;:! ]|q?quad(?![A-Za-z]))|~")

_DOUBT: Final = re.compile(
    r"(?<![A-Za-z\\])(?:[A-Z](?![A-Za-z])|(?i:or|and|not|nor|neither|is|isn't|but|no|maybe|wrong|incorrect|false)(?![A-Za-z]))"
    r"|\([A-Za-z]\)"
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
    answer, marked = _unmarked(answer)
    match = _LETTER.fullmatch(answer)
    if match is not None and match["open"] in (None, "(") and (letter := match["letter"].upper()) in options:
        if match["text"] is None:
            return letter
        set_off = marked or match["open"] is not None or match["mark"] in (".", ":", ")")
        if options[letter] is None and set_off and not _names_another(match["text"]):
            return letter
        if options[letter] is not None and _plain(match["text"]) == options[letter]:
            return letter
    by_text = [letter for letter, text in options.items() if text is not None and text == _plain(answer)]
    return by_text[0] if len(by_text) == 1 else None


def _unmarked(answer: str) -> tuple[str, bool]:
    """`\\textbf{(B)}\\ 5` as `(B) 5`, and whether LaTeX set a letter off from what follows it."""
    text = _UNSEEN.sub("", answer.replace("\\.", "."))
    marked = _SET_OFF.match(text) is not None
    text = _MARKED.sub(lambda match: f"{next(group for group in match.groups() if group is not None).strip()} ", text)
    text = undecorated(_SPACES.sub(" ", text))
    while text.startswith("{") and text.endswith("}") and has_balanced_braces(text[1:-1]):
        text = text[1:-1].strip()
    text = undecorated(_LABELLED.sub("", text))
    if (quoted := _QUOTED.fullmatch(text)) is not None:
        text = quoted[2]
    text = re.sub(r"\(\s*([A-Za-z])\s*\)", r"(\1)", re.sub(r"\s+(?=[.:)])", "", text))
    return text.removesuffix(","), marked


def _names_another(text: str) -> bool:
    """Whether what stands behind a letter may be a second choice or a doubt."""
    return _DOUBT.search(text) is not None


def _plain(text: str) -> str:
    return " ".join(undecorated(_SPACES.sub(" ", text)).casefold().split())


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
    letter = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", _unmarked(answer)[0]) if isinstance(answer, str) else None
    if letter is None or letter[1].upper() not in options:
        raise InvalidReferenceError(f"final_answer {answer!r:.100} is not the letter of an option")
    return letter[1].upper()


REWARD = Reward(
    name="choice",
    params=AnswerParams,
    score=score,
    keys=ReferenceKeys(required=("final_answer",), optional=("options",)),
)
