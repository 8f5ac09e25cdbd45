r"""Rarer spellings in the common one, once the kinds of `\text` and `\frac` are one.

Bases, ratios and currencies in words, aligned equations, combinations by indices, quotients of units, marks that say
nothing. Pure functions from text to text.
"""

from __future__ import annotations

import re
from typing import Final

_NUMBERS: Final = "two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen|[0-9]{1,2}"
_IN_BASE: Final = re.compile(
    rf"(?<=[0-9A-F)])(?: *_ *\{{)? *\\text *\{{ *\(? *(?:in )?base[- ]?(?: *\}} *)?({_NUMBERS}) *\)? *\}}? *\}}?$"
)
_CURRENCIES: Final = {"rs": "₹", "inr": "₹", "usd": r"\$", "us": r"\$", "eur": "€", "gbp": "£"}
_CURRENCY: Final = re.compile(
    r"^(?:\\text *\{ *)?(Rs|INR|USD|US|EUR|GBP)\.?(?: *\\?\$)?[ ~\\,]*(?:\} *)?(?=[0-9])", re.IGNORECASE
)
_RATIO: Final = re.compile(r"(?<=[0-9]) *(?:\\text *\{ *to *\}| to ) *(?=[0-9])")
_COMBINATIONS: Final = re.compile(
    r"(?:\{ *\} *[_^] *|(?<![\w}])[_^] *)\{? *([0-9]{1,3}) *\}? *C *_ *\{? *([0-9]{1,3}) *\}?|"
    r"(?<![A-Za-z\\{])C *_ *(?:\{ *([0-9]{2,3}) *\}|([3-9])) *\^ *(?:\{ *([0-9]{1,3}) *\}|([0-9]))"
)
_UNIT_QUOTIENT: Final = re.compile(
    r"\\frac *\{ *\\text *\{([A-Za-z ]+)\} *\} *\{ *\\text *\{([A-Za-z ]+)\} *(\^ *\{?[0-9]\}?)? *\}"
)
_ALIGNED: Final = re.compile(
    r"\\begin *\{(aligned|align|alignedat|gather|gathered|split|equation)(\*?)\}(.*)\\end *\{\1\2\}", re.DOTALL
)
_CELL: Final = re.compile(r"\\begin *\{array\} *\{[lcr]\}([^&\\]*)\\end *\{array\}")
_ARROWS: Final = re.compile(r"\\(?:overrightarrow|mathvec)(?![A-Za-z])")
_SHORT_BARS: Final = re.compile(r"\\(?:bar|overbar)(?![A-Za-z])")
_MARKS: Final = re.compile(r"\\checkmark(?![A-Za-z])|&nbsp;|\\square$|\\blacksquare$|\\qed$")


def respelled(text: str) -> str:
    """`text` with the common spelling of what is rarer."""
    text = _ARROWS.sub(r"\\vec", _SHORT_BARS.sub(r"\\overline", _MARKS.sub(" ", text))).strip()
    text = _CURRENCY.sub(lambda match: _CURRENCIES[match[1].lower()], text)
    text = _CELL.sub(r"\1", _ALIGNED.sub(_rows, text))
    text = _UNIT_QUOTIENT.sub(r"\\text{\1}/\\text{\2}\3", text)
    text = _COMBINATIONS.sub(_combinations, text)
    return _RATIO.sub(":", _IN_BASE.sub(r"_{\1}", text))


def _rows(match: re.Match[str]) -> str:
    """Aligned rows as a chain where each goes on with a sign of equality, else as a list."""
    rows = [row.replace("&", " ").strip(" ,;") for row in re.split(r"\\\\", match[3])]
    rows = [row for row in rows if row]
    goes_on = all(row.startswith("=") for row in rows[1:])
    return (" " if goes_on else ", ").join(rows)


def _combinations(match: re.Match[str]) -> str:
    r"""`C_{10}^3` and `{}_{10}C_3` as a binomial; `C_1^2`, which is none, as it is."""
    above, below = (part for part in match.groups() if part is not None)
    return f"\\binom{{{above}}}{{{below}}}" if int(below) <= int(above) else match.group()
