"""The texts of tokens that end a turn, which callers leave in what they decode. Pure, standard library only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Final

_BLANKS: Final = " \t\r\n"
_TAG: Final = "</"


def without_end_tokens(text: str, tokens: Sequence[str]) -> str:
    """`text` without the end tokens at its end, however many (padding is of them), blanks between and behind them
    included. Those that end a line inside it, as in turns that were put together, go as well, but for what may be
    HTML's there (`</s>`). Time is linear in the text.
    """
    end = len(text)
    while (last := _without_blanks(text, end)) and (ended := _ending(text, last, tokens)):
        end = last - len(ended)
    text = text[:end]
    return _at_line_ends(tuple(tokens)).sub("", text) if any(token in text for token in tokens) else text


def _without_blanks(text: str, end: int) -> int:
    while end and text[end - 1] in _BLANKS:
        end -= 1
    return end


def _ending(text: str, end: int, tokens: Sequence[str]) -> str | None:
    return next((token for token in tokens if text.endswith(token, 0, end)), None)


@cache
def _at_line_ends(tokens: tuple[str, ...]) -> re.Pattern[str]:
    plain = [re.escape(token) for token in tokens if not token.startswith(_TAG)]
    return re.compile(rf"(?:{'|'.join(plain) or '(?!)'})(?=[ \t\r]*\n)")
