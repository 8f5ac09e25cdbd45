"""Reading numbers out of text that a language model wrote.

A number is, in this order and with single blanks where shown:

    [sign][currency [blank]] magnitude [scale word] [% or currency] [unit] [.]

- sign: `+`, `-` or U+2212, before or after the currency sign (`-$5`, `$-5`);
- magnitude: an integer or decimal, thousands separated by commas in groups of three or not at all (`1,234.5`, `.5`);
  scientific (`1.5e3`, `1.5 x 10^3`); a fraction of integers (`3/4`); a mixed number (`1 1/2`);
- scale word: hundred, thousand, million, billion, trillion, k or bn: it multiplies;
- `%` does not divide by 100: "50%" is 50, as in the data sets this is used with;
- unit: one word of at most 16 letters, `square`, `sq` or `cubic` before it; behind that or alone `per` or `/` and one
  more word (`$15/hour`);
- one full stop at the end: a sentence may end.

Digits are the ASCII ones. Everything else is not a number: `nan`, `inf`, whatever a double cannot hold (`1e999`),
digits of other scripts, invisible characters, "5 or 6", "1,23", "1_000", "0x1F", and texts of more than
MAX_NUMBER_CHARS characters.

Values are `Decimal`s, so that large integers that differ by one differ. All functions take time linear in the text.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal
from typing import Final

MAX_NUMBER_CHARS: Final = 100
TOLERANCE: Final = Decimal("0.001")

_MAX_ADJUSTED_EXPONENT: Final = 307  # below 1e308 every value fits in a double
_BLANKS: Final = " \t\r\n"
_CONTEXT: Final = Context(prec=50, traps=[])  # no traps: a division by zero gives infinity, which is then refused
_SCALES: Final = {"hundred": 2, "thousand": 3, "k": 3, "million": 6, "billion": 9, "bn": 9, "trillion": 12}

_SIGN = r"[-+\u2212]"
_CURRENCY = r"[$€£¥₹]"
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})++|[0-9]++)"
_WORD = r"[A-Za-z°µ][A-Za-z²³]{0,15}+"
_SIGNED = rf"(?:(?:(?<![\w)\]])(?P<sign>{_SIGN}))?(?:{_CURRENCY}[ ]?)?|{_CURRENCY}(?P<inner_sign>{_SIGN}))"
_MAGNITUDE = rf"""(?:
    (?P<whole>[0-9]++)[ ](?P<mixed_numerator>[0-9]++)/(?P<mixed_denominator>[0-9]++)
  | (?P<numerator>{_INTEGER})[ ]?/[ ]?(?P<denominator>{_INTEGER})
  | (?P<decimal>(?:{_INTEGER}(?:\.[0-9]++)?|\.[0-9]++)(?:[eE]{_SIGN}?[0-9]{{1,4}}+)?)
    (?:[ ]?[x×*·][ ]?10\^\{{?(?P<power>{_SIGN}?[0-9]{{1,4}}+)\}}?)?
)"""
_SCALE = rf"(?:[ ]?(?P<scale>(?i:{'|'.join(_SCALES)}))(?![A-Za-z]))?"
_UNIT = rf"(?:[ ]?(?:(?:square|sq|cubic)[ ])?{_WORD})?(?:(?:[ ]per[ ]|/){_WORD})?"

_NUMBER: Final = re.compile(rf"{_SIGNED}{_MAGNITUDE}{_SCALE}(?:[ ]?(?:%|{_CURRENCY}))?{_UNIT}\.?", re.VERBOSE)
# \d, unlike [0-9], knows the digits of all scripts: a number that touches one of those is not a number.
_NUMBER_IN_TEXT: Final = re.compile(rf"{_SIGNED}(?<!\d)(?>{_MAGNITUDE}){_SCALE}(?!\d)", re.VERBOSE)


def parse_number(text: str) -> Decimal | None:
    """Reads `text` as one number, as a whole; None if it is not one (see the module's grammar)."""
    text = text.strip(_BLANKS)
    if not 0 < len(text) <= MAX_NUMBER_CHARS:
        return None
    if text.isascii() and text.isdigit():  # the usual case
        return Decimal(text)
    match = _NUMBER.fullmatch(text)
    return None if match is None else _value(match)


def last_number(text: str) -> tuple[Decimal | None, str | None]:
    """The last number that stands anywhere in `text`, and how it is written there; (None, None) if there is none.

    (None, written) if the last one is written like a number but has no value (`1e999`, `1/0`, too many digits).
    Units and percent signs are passed over.
    """
    last_digit = max(map(text.rfind, "0123456789"))
    if last_digit < 0:
        return None, None
    # The number ends at that digit or in a scale word soon after it, and nothing longer than the limit is one:
    # a window around it is enough, however long the text is.
    start = max(0, last_digit - MAX_NUMBER_CHARS)
    matches = list(_NUMBER_IN_TEXT.finditer(text[start : last_digit + 24]))
    if not matches:
        return None, None
    match = matches[-1]
    if match.start() == 0 and start > 0:  # it began before the window
        return None, match.group()
    return _value(match), match.group().strip(_BLANKS)


def close(left: Decimal, right: Decimal, tolerance: Decimal = TOLERANCE) -> bool:
    """|left - right| <= tolerance, without the rounding of doubles."""
    return abs(_CONTEXT.subtract(left, right)) <= tolerance


def in_range(value: Decimal) -> bool:
    """Whether `value` is finite and a double can hold it."""
    return value.is_finite() and (not value or value.adjusted() <= _MAX_ADJUSTED_EXPONENT)


def _value(match: re.Match[str]) -> Decimal | None:
    if (decimal := match["decimal"]) is not None:
        value = _plain(decimal)
        if (power := match["power"]) is not None:
            value = _CONTEXT.scaleb(value, _plain(power))
    elif (numerator := match["numerator"]) is not None:
        value = _CONTEXT.divide(_plain(numerator), _plain(match["denominator"]))
    else:
        part = _CONTEXT.divide(_plain(match["mixed_numerator"]), _plain(match["mixed_denominator"]))
        value = _CONTEXT.add(_plain(match["whole"]), part)
    if (scale := match["scale"]) is not None:
        value = _CONTEXT.scaleb(value, _SCALES[scale.lower()])
    if (match["sign"] or match["inner_sign"]) in ("-", "\u2212"):
        value = value.copy_negate()
    return value if in_range(value) else None


def _plain(digits: str) -> Decimal:
    return Decimal(digits.replace(",", "").replace("\u2212", "-"))
