r"""Where the whole numbers that count solutions are named: `k \in \mathbb{Z}` in brackets, in a set, in words."""

from __future__ import annotations

import re
from typing import Final

_IN_INTEGERS: Final = r"([a-z]) ?\\in ?\\mathbb ?\{? ?Z ?\}?"
_IN_BRACKETS: Final = re.compile(rf",? ?[(\[] ?{_IN_INTEGERS} ?[)\]]$")
_BLANKS: Final = re.compile(r"(?:\\[ ,;:!]|~|\\q?quad|\s)+$")
_IN_A_SET: Final = re.compile(rf"\\\{{ ?(.+?) ?(?:\||\\mid|:|\\colon) ?{_IN_INTEGERS} ?\\\}}")
_IN_WORDS: Final = re.compile(
    r"[, (]*(?:\\text ?\{[, (]*)?(?:(?:where|for|with|and) ?)?(?:(?:any|all|every|each|some|an) ?)?"
    r"(?:integers?\b ?\}? ?([a-z])"
    r"|\}? ?\b([a-z])\b ?(?:\\text ?\{ ?)?(?:is |being )?(?:an? |any |some )?(?:arbitrary )?integers?) ?\}?\)?$"
)


def counter_spelled(text: str) -> str:
    r"""`\frac{\pi}{4} + k\pi \text{ for any integer } k` as `\frac{\pi}{4} + k\pi, k\in\mathbb{Z}`."""
    if (found := _IN_A_SET.fullmatch(text)) is not None:
        return rf"{found[1]}, {found[2]}\in\mathbb{{Z}}"
    for pattern in (_IN_BRACKETS, _IN_WORDS):
        if (match := pattern.search(text)) is not None and (formula := _BLANKS.sub("", text[: match.start()])):
            return rf"{formula}, {next(filter(None, match.groups()))}\in\mathbb{{Z}}"
    return text
