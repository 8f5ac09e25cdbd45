"""Reading numbers out of text that a language model wrote.

A number is, in this order and with single blanks where shown:

    [sign][currency [blank]] magnitude [scale word or part] [% or currency] [unit] [.]

- sign: `+`, `-`, U+2212 or the words `minus` and `negative`, before or after the currency sign (`-$5`, `$-5`);
- magnitude: an integer or decimal, thousands separated in groups of three or not at all (`1,234.5`, `.5`), by commas or
  by the blanks that typesetters use (no-break, thin); by a plain blank where the last group is 000, which is no number
  of its own (`1 000 000`); scientific (`1.5e3`, `1.5 x 10^3`); a fraction of integers (`3/4`, `¾`); a mixed number
  (`1 1/2`, `1½`); a power (`10^-7`, `2**10`, `10³`);
- scale word: dozen, hundred, thousand, million, billion, trillion, k or bn: it multiplies; so do K, M, B and T where a
  currency or one of a few units says that they are no units themselves (`$300K`, `300K people`; `300 K` is kelvin);
- part: thirds to ninths, tenths, hundredths ... billionths: it divides; `and a half` adds a half;
- `%` does not divide by 100: "50%" is 50, as in the data sets this is used with;
- unit: one word of at most 16 letters, not x, y, z, n or i, which are variables, `square`, `sq` or `cubic` before it
  or `^2` behind it; behind that or alone `per` or `/` and one more word (`$15/hour`);
- one full stop at the end: a sentence may end.

Digits are the ASCII ones. Everything else is not a number: `nan`, `inf`, whatever a double cannot hold (`1e999`),
digits of other scripts, invisible characters, "5 or 6", "1,23", "1_000", "0x1F", and texts of more than
MAX_NUMBER_CHARS characters.

Values are `Decimal`s, so that large integers that differ by one differ. All functions take time linear in the text.
"""

from __future__ import annotations

import re
from decimal import Context, Decimal
from functools import lru_cache
from typing import Final
from unicodedata import normalize

MAX_NUMBER_CHARS: Final = 100
_MAX_WRITTEN_CHARS: Final = 10 * MAX_NUMBER_CHARS
"""No spelling of a number is so many times as long as it is in a line."""
TOLERANCE: Final = Decimal("0.001")
_SMALL: Final = Decimal("0.1")

_MAX_ADJUSTED_EXPONENT: Final = 307  # below 1e308 every value fits in a double
_BLANKS: Final = " \t\r\n"
_CONTEXT: Final = Context(prec=50, traps=[])  # no traps: a division by zero gives infinity, which is then refused
_DOZEN: Final = "dozen"
_SCALES: Final = {"hundred": 2, "thousand": 3, "k": 3, "million": 6, "billion": 9, "bn": 9, "trillion": 12}

_ABBREVIATIONS: Final = {"K": 3, "M": 6, "B": 9, "T": 12}
_COUNTED: Final = re.compile(  # what is counted in thousands, so that a K before it is no unit
    r"[ ]?(?:dollars?|usd|eur|euros?|pounds?|rupees?|yen|people|persons|residents|inhabitants|users|subscribers"
    r"|followers|views|copies|tokens|steps|miles|employees|students|visitors|[$€£¥₹])(?![A-Za-z])",
    re.IGNORECASE,
)
_PARTS: Final = {
    **{"thirds": 3, "fourths": 4, "fifths": 5, "sixths": 6, "sevenths": 7, "eighths": 8, "ninths": 9, "tenths": 10},
    **{"hundredth": 10**2, "thousandth": 10**3, "millionth": 10**6, "billionth": 10**9},
    **{f"ten{blank}thousandth": 10**4 for blank in "- "},
    **{f"hundred{blank}thousandth": 10**5 for blank in "- "},
}
_HALVES: Final = {"half": 2, "third": 3, "quarter": 4}

_SIGN = r"[-+\u2212]"
_CURRENCY = r"(?:(?<![A-Za-z])(?:R|US|AU?|CA?|HK|NZ|S)?\$|[€£¥₹])"
_INTEGER = (
    r"(?:[0-9]{1,3}(?:,[0-9]{3})++|[0-9]{1,3}(?:[\u00a0\u2009\u202f][0-9]{3}(?!\d))++"
    r"|[1-9][0-9]{0,2}(?:[ ][0-9]{3}){0,4}[ ]000(?![\d,.]*\d)|[0-9]++)"
)
_WORD = r"(?![xyzni](?![A-Za-z]))[A-Za-z°µ][A-Za-z²³]{0,15}+"
_SIGNED = rf"(?:(?:(?<![\w)\]])(?P<sign>{_SIGN}))?(?:{_CURRENCY}[ ]?)?|{_CURRENCY}(?P<inner_sign>{_SIGN}))"
_MAGNITUDE = rf"""(?:
    (?P<whole>[0-9]++)[ ](?P<mixed_numerator>[0-9]++)/(?P<mixed_denominator>[0-9]++)
  | (?P<numerator>{_INTEGER})[ ]?/[ ]?(?P<denominator>{_INTEGER})
  | (?P<decimal>(?:{_INTEGER}(?:\.[0-9]++)?|(?<![A-Za-z])\.[0-9]++)(?:[eE]{_SIGN}?[0-9]{{1,4}}+)?)
    (?:[ ]?(?:[x×*·]|\\times|\\cdot)[ ]?10(?:\^|\*\*)[{{(]?(?P<power>{_SIGN}?[0-9]{{1,4}}+)[)}}]?
    |[ ]?(?:\^|\*\*)[ ]?[{{(]?(?P<exponent>{_SIGN}?[0-9]{{1,4}}+)[)}}]?(?![ ]?\^))?
)"""
_SCALE = rf"""(?:(?=[ ]?[A-Za-z])(?:
    [ ]?(?P<scale>(?i:{"|".join(word for word in _SCALES if word != "k")})|dozen|[kKMBT])(?![A-Za-z^²³])
  | [ ](?P<part>{"|".join(re.escape(word) + ("" if word.endswith("s") else "s?") for word in _PARTS)})(?![A-Za-z])
  | [ ]and[ ](?:a|one)[ ](?P<half>{"|".join(_HALVES)})(?![A-Za-z])
))?"""
_UNIT = (
    rf"(?:[ ]?(?:(?:square|sq|cubic)[ ])?{_WORD}(?:(?<=[a-z][a-z]|[ 0-9]m)\^\{{?[23]\}}?)?)?(?:(?:[ ]per[ ]|/){_WORD})?"
)

_NUMBER: Final = re.compile(rf"{_SIGNED}{_MAGNITUDE}{_SCALE}(?:[ ]?(?:%|{_CURRENCY}))?{_UNIT}\.?", re.VERBOSE)
# \d, unlike [0-9], knows the digits of all scripts: a number that touches one of those is not a number.
_NUMBER_IN_TEXT: Final = re.compile(rf"{_SIGNED}(?<!\d)(?>{_MAGNITUDE}){_SCALE}(?!\d)", re.VERBOSE)
# What stands behind ^ is an exponent: of a number it is a part, of a unit or a variable it is no number of its own.
# Nor is what stands behind the _ of a variable.
# Nor is the 2 of `18 m2`.
_BEFORE_EXPONENT: Final = re.compile(
    rf"(?:\^|[0-9A-Za-z)]\*\*|(?<=[A-Za-z])_)[{{(]?{_SIGN}?$|[0-9][ ]?(?:[cdkm]?m|ft|in|yd|mi)$"
)
# `12:30`, `3:5`, `2024-01-05`, `1.2.3`: the last part of a time, a ratio, a date, a version is no number of its own.
_PART_OF_A_DATE: Final = re.compile(r"[0-9]:$|[0-9]{1,4}[-/][0-9]{1,2}$|[0-9]-[0-9]{1,2}-$|[0-9]\.[0-9]+(?:\.[0-9]*)?$")
_NEGATIVE: Final = re.compile(  # but `10 minus 5`
    r"(^|\b(?:is|are|was|be|equals|of|to|gives|gets?|answer)[:=]? |[=:(*] ?)(?:minus|negative) (?=[$€£¥₹]?\.?[0-9])",
    re.IGNORECASE,
)
_MAX_EXPONENTS: Final = 8  # at the end of a text, that are looked past


_RAISED: Final = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR: Final = re.compile("([0-9]?)([¼½¾⅐-⅞])")
_RAISED_DIGITS: Final = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")


_GROUPS: Final = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,;:! ]|,\\!|')(?=[0-9]{3}(?![0-9]))")
"""Between thousands in LaTeX, and the apostrophe that stands there in Switzerland."""
_EN_DASH: Final = re.compile(r"(?:^|(?<=[=:(*] )|(?<=[=:(*]))\u2013(?=[$€£¥₹]?\.?[0-9])")
_FRACTION: Final = re.compile(
    r"([0-9]?) ?\\[dtc]?frac ?(?:\{ ?([0-9]{1,15}) ?\} ?\{ ?([0-9]{1,15}) ?\}|([0-9]) ?([0-9]))"
)


def _quotient(match: re.Match[str]) -> str:
    above, below = match[2] or match[4], match[3] or match[5]
    return f"{match[1]}{' ' if match[1] else ''}{above}/{below}"


def _in_line(text: str) -> str:
    """What is written in another way, as it is in a line: `10³` as `10^3`, `1½` as `1 1/2`, `minus 5` as `-5`."""
    if "'" in text or "\\" in text or "{,}" in text:
        text = _GROUPS.sub(",", text)
    if "us " in text or "US " in text or "ive " in text or "IVE " in text:
        text = _NEGATIVE.sub(r"\1-", text)
    if text.isascii():
        return text
    text = _EN_DASH.sub("-", text)
    text = _RAISED.sub(lambda match: f"^{match.group().translate(_RAISED_DIGITS)}", text)
    return _VULGAR.sub(
        lambda match: f"{match[1]}{' ' if match[1] else ''}{normalize('NFKC', match[2]).replace('⁄', '/')}", text
    )


def parse_number(text: str) -> Decimal | None:
    """Reads `text` as one number, as a whole; None if it is not one (see the module's grammar)."""
    return _parse_short(text) if len(text) <= MAX_NUMBER_CHARS else _parse(text)


def _parse(text: str) -> Decimal | None:
    text = text.strip(_BLANKS)
    if len(text) > _MAX_WRITTEN_CHARS:
        return None
    text = _in_line(text)
    if not 0 < len(text) <= MAX_NUMBER_CHARS:
        return None
    if text.isascii() and text.isdigit():  # the usual case
        return Decimal(text)
    match = _NUMBER.fullmatch(text)
    return None if match is None else _value(match)


_parse_short = lru_cache(maxsize=4096)(_parse)
"""A reference, and what completions say, is much the same in a batch."""


def last_number(text: str) -> tuple[Decimal | None, str | None]:
    """The last number that stands anywhere in `text`, and how it is written there; (None, None) if there is none.

    (None, written) if the last one is written like a number but has no value (`1e999`, `1/0`, too many digits).
    Units and percent signs are passed over.
    """
    text = _in_line(_FRACTION.sub(_quotient, text) if "frac" in text else text)
    end = len(text)
    for _ in range(_MAX_EXPONENTS):
        last_digit = max([text.rfind(digit, 0, end) for digit in "0123456789"])
        if last_digit < 0:
            return None, None
        # The number ends at that digit or in a word soon after it, and nothing longer than the limit is one: a window
        # around it is enough, however long the text is.
        start = max(0, last_digit - MAX_NUMBER_CHARS)
        if (match := _last_match(text[start : last_digit + 24])) is not None:
            if match.start() == 0 and start > 0:  # it began before the window
                return None, match.group()
            if _PART_OF_A_DATE.search(text[start : start + match.start()]):
                return None, match.group()
            return _value(match), match.group().strip(_BLANKS)
        end = start if start > 0 else 0
    return None, None


def _last_match(window: str) -> re.Match[str] | None:
    matches = reversed(list(_NUMBER_IN_TEXT.finditer(window)))
    return next((match for match in matches if not _BEFORE_EXPONENT.search(window[: match.start()])), None)


def close(value: Decimal, expected: Decimal, tolerance: Decimal = TOLERANCE) -> bool:
    """|value - expected| <= tolerance, without the rounding of doubles; of small numbers one hundredth is tolerated.

    Without the latter 0.003 would be 0.002, and 0.0005 nothing.
    """
    if value == expected:
        return True
    if abs(expected) < _SMALL:
        tolerance = abs(expected) / 100
    return abs(_CONTEXT.subtract(value, expected)) <= tolerance


def in_range(value: Decimal) -> bool:
    """Whether `value` is finite and a double can hold it."""
    return value.is_finite() and (not value or value.adjusted() <= _MAX_ADJUSTED_EXPONENT)


def _value(match: re.Match[str]) -> Decimal | None:
    value = _scaled(match, _magnitude(match))
    if (match["sign"] or match["inner_sign"]) in ("-", "\u2212"):
        value = value.copy_negate()
    return value if in_range(value) else None


def _magnitude(match: re.Match[str]) -> Decimal:
    if (decimal := match["decimal"]) is not None:
        value = _plain(decimal)
        if (power := match["power"]) is not None:
            return _CONTEXT.scaleb(value, _plain(power))
        return value if (exponent := match["exponent"]) is None else _CONTEXT.power(value, _plain(exponent))
    if (numerator := match["numerator"]) is not None:
        return _CONTEXT.divide(_plain(numerator), _plain(match["denominator"]))
    part = _CONTEXT.divide(_plain(match["mixed_numerator"]), _plain(match["mixed_denominator"]))
    return _CONTEXT.add(_plain(match["whole"]), part)


def _scaled(match: re.Match[str], value: Decimal) -> Decimal:
    if (scale := match["scale"]) is not None:
        if scale == _DOZEN:
            return value * 12
        if scale not in _ABBREVIATIONS:
            return _CONTEXT.scaleb(value, _SCALES[scale.lower()])
        return _CONTEXT.scaleb(value, _ABBREVIATIONS[scale]) if _counts_thousands(match) else value
    if (part := match["part"]) is not None:
        return _CONTEXT.divide(value, Decimal(_PARTS.get(part) or _PARTS[part.removesuffix("s")]))
    if (half := match["half"]) is not None:
        return _CONTEXT.add(value, _CONTEXT.divide(Decimal(1), Decimal(_HALVES[half])))
    return value


def _counts_thousands(match: re.Match[str]) -> bool:
    """Whether a K is a thousand: a currency stands before it, or something that is counted behind it."""
    before = match.group()[: match.start("scale") - match.start()]
    return any(sign in before for sign in "$€£¥₹") or _COUNTED.match(match.string, match.end("scale")) is not None


_SEPARATORS: Final = str.maketrans({**dict.fromkeys(", \u00a0\u2009\u202f"), "\u2212": "-"})


def _plain(digits: str) -> Decimal:
    return Decimal(digits.translate(_SEPARATORS))
