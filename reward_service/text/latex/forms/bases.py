"""Whole numbers in other bases than ten."""

from __future__ import annotations

import re
from typing import Final

from reward_service.text.expressions import ExpressionError
from reward_service.text.latex.values import Quantity

_BASES: Final = {
    **{"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10},
    **{"twelve": 12, "sixteen": 16, "binary": 2, "octal": 8, "hex": 16},
}
_IN_BASE: Final = re.compile(
    r"\(?(?:\\text ?\{)?([0-9A-F]+|[0-9a-f]{2,})\}?\)? ?_ ?\{? ?\(?(?:\\text ?\{ ?)?([0-9]+|[a-z]+)\)?(?: ?\})*"
)

_PREFIXES: Final = {"x": 16, "b": 2, "o": 8}
_PREFIXED: Final = re.compile(r"0(x(?=[0-9a-f]+$)|b(?=[01]+$)|o(?=[0-7]+$))(\w+)", re.IGNORECASE)


def in_base(text: str) -> Quantity | None:
    r"""`2516_8`, `1010_{\text{two}}`, `0x1F` as a number; None for what is none.

    ExpressionError if there are digits that the base has not.
    """
    import sympy

    if (prefixed := _PREFIXED.fullmatch(text)) is not None:
        base = _PREFIXES[prefixed[1].lower()]
        return Quantity(sympy.Integer(int(prefixed[2], base)), base=base)
    if "_" not in text or (match := _IN_BASE.fullmatch(text)) is None:
        return None
    base = int(match[2]) if match[2].isdigit() else _BASES.get(match[2], 0)
    if not 2 <= base <= 36 or not (match[1][0].isdigit() or base > 10):
        return None
    if base != 16 and any("a" <= digit <= "z" for digit in match[1]):  # rather a letter with an index
        return None
    try:
        return Quantity(sympy.Integer(int(match[1], base)), base=base)
    except ValueError:
        raise ExpressionError(f"{match[1]:.30} has digits that base {base} has not") from None
