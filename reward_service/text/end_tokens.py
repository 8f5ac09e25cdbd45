"""The texts of tokens that end a turn, which callers leave in what they decode. Pure, standard library only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Final

_BLANKS: Final = " \t\r\n"
_SPECIAL: Final = ("<|", "<｜")


def without_end_tokens(text: str, tokens: Sequence[str]) -> str:
    """`text` without the end tokens at its end, however many (padding is of them), blanks between and behind them
    included; of the tokens that no other text contains (`<|…|>`), those that end a line inside it go as well: turns
    that were put together have them. Time is linear in the text.
    """
    end = len(text)
    while (last := _without_blanks(text, end)) and (ended := _ending(text, last, tokens)):
        end = last - len(ended)
    text = text[:end]
    if any(mark in text for mark in _SPECIAL):
        return _at_line_ends(tuple(tokens)).sub("", text)
    return text


def _without_blanks(text: str, end: int) -> int:
    while end and text[end - 1] in _BLANKS:
        end -= 1
    return end


def _ending(text: str, end: int, tokens: Sequence[str]) -> str | None:
    return next((token for token in tokens if text.endswith(token, 0, end)), None)


@cache
def _at_line_ends(tokens: tuple[str, ...]) -> re.Pattern[str]:
    special = [re.escape(token) for token in tokens if token.startswith(_SPECIAL)]
    return re.compile(rf"(?:{'|'.join(special) or '(?!)'})(?=[ \t\r]*\n)")
