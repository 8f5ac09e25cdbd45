"""Numbers in English words."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_ONES: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES: Final = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS: Final = {
    **{"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8},
    **{"ninth": 9, "tenth": 10, "hundredth": 100, "thousandth": 1000},
}
_BELOW_100: Final = {word: number for number, word in enumerate(_ONES)} | {
    f"{ten} {one}".strip(): 10 * tens + ones
    for tens, ten in enumerate(_TENS, 2)
    for ones, one in enumerate(("", *_ONES[1:10]))
}
_MAX_CHARS: Final = 150
_KNOWN: Final = frozenset((*_ONES, *_TENS, *_SCALES, *_PARTS, "hundred", "halves", "minus", "negative"))


def spelled(words: str) -> Fraction | None:
    """`one hundred and twenty five`, `two thirds`, `three and a half`, `minus seven`; None for any other words.

    `words` are in lower case, with blanks for hyphens and without an article before them.
    """
    first = words.partition(" ")[0]
    if len(words) > _MAX_CHARS or (first not in _KNOWN and first.removesuffix("s") not in _KNOWN):
        return None
    sign, bare = 1, words
    if first in ("minus", "negative"):
        sign, bare = -1, re.sub(r"^\w+ ?(?:an? )?", "", words)
    value = _part(bare) if (whole := _whole(bare)) is None else Fraction(whole)
    if value is None and (halves := re.fullmatch(r"(.+) and (an?|one) (\w+)", bare)) is not None:
        whole, part = _whole(halves[1]), _part(f"one {halves[3]}")
        value = None if whole is None or part is None else whole + part
    return None if value is None else sign * value


def _part(words: str) -> Fraction | None:
    above, _, below = words.rpartition(" ")
    count = 1 if not above else _BELOW_100.get(above)
    below = "half" if below == "halves" and count != 1 else below
    if count != 1 and below != "half":
        below = below.removesuffix("s") if below.endswith("s") else ""
    denominator = _PARTS.get(below)
    return None if count is None or denominator is None else Fraction(count, denominator)


def _whole(words: str) -> int | None:
    """Groups from the greatest scale down, each with a number below a thousand."""
    total, last = 0, 10**15
    rest = words
    for scale, factor in reversed(_SCALES.items()):
        before, found, behind = rest.partition(scale)
        if not found:
            continue
        count = _below_1000(before.strip()) if before.strip() else 1 if not total else None
        if count is None or factor >= last or (behind and not behind.startswith(" ")):
            return None
        total, last, rest = total + count * factor, factor, behind.strip()
    rest = rest.removeprefix("and ") if total else rest
    if not rest:
        return total or None
    count = _below_1000(rest)
    return None if count is None else total + count


def _below_1000(words: str) -> int | None:
    before, found, behind = words.partition("hundred")
    if not found:
        return _BELOW_100.get(words)
    hundreds = _BELOW_100.get(before.strip()) if before.strip() else 1
    behind = behind.strip().removeprefix("and ").strip()
    ones = _BELOW_100.get(behind) if behind else 0
    return None if hundreds is None or ones is None or not 0 < hundreds < 100 else hundreds * 100 + ones
