"""GSM8K as lm-eval's task `gsm8k` judges it (0.4.13), so that its figures and ours can be compared. Pure.

A completion ends before the first of its stop strings. `strict-match` is the first `#### N`, `flexible-extract` the
last number; either is right if it equals the reference as a text, commas, dollar signs and one full stop at the end
aside. So `72.0` is not 72 there, and the article's line `#### The final answer is 72` is no answer to `strict-match`:
the task `gsm8k` has GSM8K's own with `data.answer_prefix='####'`.
"""

from __future__ import annotations

import re
from typing import Final

STOPS: Final = ("Question:", "</s>", "<|im_end|>")

_STRICT: Final = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE: Final = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_IGNORED: Final = (re.compile(","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def cut(text: str) -> str:
    """The completion up to the first stop string."""
    return text[: min((at for stop in STOPS if (at := text.find(stop)) >= 0), default=len(text))]


def strict_match(text: str, final_answer: str) -> float:
    """1 if the first `#### N` says the answer, else 0.

    Args:
        text: The completion, up to the first stop.
        final_answer: A number as text.
    """
    found = _STRICT.findall(text)
    return _same(found[0], final_answer) if found else 0.0


def flexible_extract(text: str, final_answer: str) -> float:
    """1 if the last number is the answer, else 0.

    Args:
        text: The completion, up to the first stop.
        final_answer: A number as text.
    """
    found = _FLEXIBLE.findall(text)
    return _same(found[-1], final_answer) if found else 0.0


def _same(said: str, final_answer: str) -> float:
    return float(_bare(said.strip()) == _bare(final_answer))


def _bare(text: str) -> str:
    for ignored in _IGNORED:
        text = ignored.sub("", text)
    return text.lower()
