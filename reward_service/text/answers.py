"""Answer lines: where a completion commits itself to an answer.

An *answer line* is a line that begins with the prefix, `#### The final answer is` unless a request says otherwise;
blanks before it do not matter. The prefix in the middle of a line (quoted in the reasoning, say) makes no answer
line. It is *well-formed* if after the prefix come one blank, a number as `reward_service.text.numerals` reads it, and
nothing else but blanks: one full stop after the number is part of the number's grammar and so is allowed.

Lines end at a line feed only, so that no exotic separator hides a second answer behind the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from reward_service.text.numerals import MAX_NUMBER_CHARS, parse_number
from reward_service.types import ANSWER_PREFIX

AnswerPlace = Literal["auto", "line", "boxed", "tags", "whole"]
"""See `reward_service.text.extraction`."""
_BLANKS: Final = " \t\r"


class AnswerLine(NamedTuple):
    """One answer line."""

    text: str
    """What follows the prefix, trimmed and cut to a displayable length, without a full stop at the end."""
    number: Decimal | None
    """Its value; None if it is not one number."""
    well_formed: bool


def answer_lines(completion: str, prefix: str = ANSWER_PREFIX) -> Iterator[AnswerLine]:
    """The answer lines in their order."""
    return map(_read, answer_texts(completion, prefix))


@lru_cache(maxsize=1)  # the rewards of a request look at a completion one after the other
def answer_texts(completion: str, prefix: str = ANSWER_PREFIX) -> tuple[str, ...]:
    """What follows the prefix on each answer line, as it stands there, found in one pass over the text."""
    texts = []
    start = 0  # always the beginning of a line
    while (found := completion.find(prefix, start)) >= 0:
        line_start = completion.rfind("\n", start, found) + 1 or start
        line_end = completion.find("\n", found)
        if line_end < 0:
            line_end = len(completion)
        if not completion[line_start:found].strip(_BLANKS):
            texts.append(completion[found + len(prefix) : line_end])
        start = line_end + 1
    return tuple(texts)


def _read(rest: str) -> AnswerLine:
    text = rest.strip(_BLANKS)
    number = parse_number(text)
    well_formed = number is not None and rest[:1] == " " and rest[1:2] not in _BLANKS
    return AnswerLine(text[:MAX_NUMBER_CHARS].removesuffix("."), number, well_formed)
