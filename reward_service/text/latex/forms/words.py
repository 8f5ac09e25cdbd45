"""Answers in words: sentences, numbers, days and hours, sets by their names."""

from __future__ import annotations

import re
from typing import Final

from reward_service.text.latex.forms.dates import date_or_time
from reward_service.text.latex.forms.number_words import spelled
from reward_service.text.latex.tokens import FUNCTIONS, GREEK, UNITS, WORDS
from reward_service.text.latex.units import folded
from reward_service.text.latex.values import Quantity, Region, Value, Words

# Words without \text: one of four letters and more, as the letters of a product would hardly stand like that.
_SENTENCE: Final = re.compile(r"(?:[A-Za-z]+ )*[A-Za-z][a-z]{3,}(?: [A-Za-z]+)*")
_NAME: Final = re.compile(r"(?!DNE$)[A-Z]{3,}")
"""A triangle, an order of letters: a product would not mind their order."""
_KNOWN_WORDS: Final = frozenset(map(str.lower, {*FUNCTIONS, *WORDS, *GREEK, *UNITS, "and", "or"}))
_SETS: Final = {
    **dict.fromkeys(("all real numbers", "all reals", "real numbers", "reals", "all real x"), "Reals"),
    **dict.fromkeys(("no solution", "no solutions", "no real solution", "no real solutions"), "EmptySet"),
    **dict.fromkeys(("empty set", "none"), "EmptySet"),
    **dict.fromkeys(("all integers", "integers", "set of integers", "set of all integers"), "Integers"),
    **dict.fromkeys(("all positive integers", "positive integers", "all natural numbers"), "Naturals"),
}


def read_words(smooth: str) -> Value | None:
    """What an answer of words alone says; None if it is none."""
    if (day := date_or_time(smooth)) is not None:
        return Words(day)
    if _NAME.fullmatch(smooth):
        return Words(smooth)
    if smooth.endswith("%") and (number := spelled(folded(smooth[:-1]))) is not None:
        import sympy

        return Quantity(sympy.Rational(number.numerator, number.denominator), unit="percent")
    if (
        smooth == "DNE"
        or _is_spelled(smooth)
        or (_SENTENCE.fullmatch(smooth) and not set(smooth.lower().split()) & _KNOWN_WORDS)
    ):
        return named_set(folded(smooth))
    return None


def _is_spelled(smooth: str) -> bool:
    """Whether a number is written in words, alone or before what is counted."""
    words = folded(smooth)
    return smooth[:1].isalpha() and (spelled(words) or spelled(words.rpartition(" ")[0])) is not None


def named_set(words: str) -> Value:
    """What words say, as the set that they name if they name one."""
    import sympy

    return Region(getattr(sympy.S, _SETS[words])) if words in _SETS else Words(words)
