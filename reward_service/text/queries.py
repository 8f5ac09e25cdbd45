"""Telling a completion from the prompt before it, where the two come as one text. Pure, standard library only."""

from __future__ import annotations

import re
from typing import Final

_MIN_OVERLAP_CHARS: Final = 16
_MAX_OVERLAPS_TRIED: Final = 64
_OPENING_TOKEN: Final = re.compile(r"<[^<>\s]{1,40}>")


def completion_of(query: str, prompt: str) -> str | None:
    """What follows the prompt in a query, None if that cannot be told.

    A tokenizer between the two may have put its opening token in front, changed blanks, or, where the prompt was too
    long, left out its beginning: then the query begins with the prompt's end, of 16 characters at least.
    """
    opening = _OPENING_TOKEN.match(query)
    for text in (query, *([query[opening.end() :]] if opening else ())):
        for found in (_after(text, prompt), _after_but_for_blanks(text, prompt), _after_the_end_of(text, prompt)):
            if found is not None:
                return found
    return None


def _after(query: str, prompt: str) -> str | None:
    return query[len(prompt) :] if query.startswith(prompt) else None


def _after_but_for_blanks(query: str, prompt: str) -> str | None:
    at = 0
    for letter in prompt:
        if letter.isspace():
            continue
        while at < len(query) and query[at].isspace():
            at += 1
        if at == len(query) or query[at] != letter:
            return None
        at += 1
    return query[at:]


def _after_the_end_of(query: str, prompt: str) -> str | None:
    beginning = query[:_MIN_OVERLAP_CHARS]
    at = prompt.find(beginning)
    for _ in range(_MAX_OVERLAPS_TRIED):
        if at < 0 or len(prompt) - at < _MIN_OVERLAP_CHARS:
            return None
        if query.startswith(prompt[at:]):
            return query[len(prompt) - at :]
        at = prompt.find(beginning, at + 1)
    return None
