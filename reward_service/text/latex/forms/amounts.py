"""Units of one kind beside each other: 90 minutes are 1.5 hours, and `5 ft 6 in` is one amount.

Metric units and those of feet and pounds are not turned into one another: such answers are rounded.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

# kind → name of a unit (as `reward_service.text.latex.units` spells it) → how many of the smallest it is
_KINDS: Final[dict[str, dict[str, int | str]]] = {
    "time": {"ms": "1/1000", "s": 1, "min": 60, "h": 3600, "day": 86400, "week": 604800},
    "years": {"month": 1, "yr": 12, "decade": 120, "century": 1200},
    "metric": {"nm": "1/1000000", "mm": 1, "cm": 10, "dm": 100, "m": 1000, "km": 10**6},
    "feet": {"inch": 1, "ft": 12, "yd": 36, "mi": 63360},
    "mass": {"mg": 1, "g": 1000, "kg": 10**6, "tonne": 10**9},
    "pounds": {"oz": 1, "lb": 16},
    "litres": {"mL": 1, "cL": 10, "dL": 100, "L": 1000},
    "cups": {"pint": 1, "quart": 2, "gallon": 8},
    "dollars": {"cent": 1, "dollar": 100},
    "sterling": {"penny": 1, "pound sterling": 100},
    "joules": {"joule": 1, "kJ": 1000},
    "watts": {"watt": 1, "kW": 1000},
    "hertz": {"Hz": 1, "kHz": 1000, "MHz": 10**6},
}
_SIZES: Final = {name: (kind, Fraction(size)) for kind, sizes in _KINDS.items() for name, size in sizes.items()}
_AMOUNT: Final = re.compile(r"([^/^·]+)(?:\^([23]))?")


def is_measure(unit: str) -> bool:
    """Whether amounts of `unit` can be turned into others."""
    return unit in _SIZES


def ratio(unit: str, other: str) -> Fraction | None:
    """How many of `other` make one of `unit`; None if they measure different things, or things we do not know."""
    ones, others = unit.split("/"), other.split("/")
    if len(ones) != len(others) or len(ones) > 2:
        return None
    above = _simple_ratio(ones[0], others[0])
    if above is None or len(ones) == 1:
        return above
    below = _simple_ratio(ones[1], others[1])
    return None if below is None else above / below


def _simple_ratio(unit: str, other: str) -> Fraction | None:
    if unit == other:
        return Fraction(1)
    one, two = _AMOUNT.fullmatch(unit), _AMOUNT.fullmatch(other)
    if one is None or two is None or one[2] != two[2] or one[1] not in _SIZES or two[1] not in _SIZES:
        return None
    (kind, size), (other_kind, other_size) = _SIZES[one[1]], _SIZES[two[1]]
    return (size / other_size) ** int(one[2] or 1) if kind == other_kind else None


_CLOCKED: Final = re.compile(
    r"(?:([0-9]+) ?d )?([0-9]+) ?h(?:rs?)?\.? ?([0-9]+) ?m(?:in)?s?\.?(?: ?([0-9]+) ?s(?:ec)?s?\.?)?"
)
_FEET: Final = re.compile(r"([0-9]+) ?' ?([0-9]+(?:\.[0-9]+)?) ?(?:''|\"|' ')")
_INCHES: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:''|\"|' ')")
_ARC: Final = re.compile(
    r"([0-9]+) ?\\degree ?([0-9]+) ?(?:'|\^ ?\{? ?\\prime ?\}?|\\text ?\{ ?minutes? ?\})"
    r"(?: ?([0-9]+) ?(?:''|\"))?(?!')"
)
_SHORT: Final = re.compile(r"(?<=[0-9}]) (in|cents?|oz|hrs?)\.?(?= ?(?:$|,? ?(?:and )?[0-9]))")
_LETTERS: Final = re.compile(r"(?<=[0-9]) ([mghsL])(?= [0-9])")
_SECONDS: Final = re.compile(r"(?<=[0-9]) s$")
_MINUTES: Final = re.compile(r"(?<=[0-9}]) ?(?:\\text ?\{ ?mins?\.? ?\}|mins?\b\.?(?! ?\())")
_JOINED: Final = re.compile(r"(?<=[0-9}]) ?\\text ?\{ ?([A-Za-z]+),? and ?\}(?= ?[0-9])")
_SPEED: Final = re.compile(r"(?<=[0-9}]) m(?: ?/ ?s(?![A-Za-z])| s ?\^ ?\{? ?-1 ?\}?)")
_ENDINGS: Final = (*"nszmgLt.}", "")


def amounts_spelled(text: str) -> str:
    r"""`1h 30min`, `5'6"` and `66 in` with their units as words; `12\degree 30'` as a number of degrees."""
    if "h" in text and (clocked := _CLOCKED.fullmatch(text)) is not None:
        names = zip(clocked.groups(), ("day", "hour", "minute", "second"), strict=True)
        return " ".join(rf"{count}\text{{ {name}}}" for count, name in names if count is not None)
    if "'" in text and (feet := _FEET.fullmatch(text)) is not None:
        return rf"{feet[1]}\text{{ ft}} {feet[2]}\text{{ inch}}"
    if text.endswith(("'", '"')) and (inches := _INCHES.fullmatch(text)) is not None:
        return rf"{inches[1]}\text{{ inch}}"
    text = _SPEED.sub(r"\\text{ m}/\\text{s}", text)
    if "\\degree" in text:
        return _ARC.sub(_degrees, text)
    if "in" in text or "and" in text:
        text = _JOINED.sub(r"\\text{\1} ", _MINUTES.sub(r"\\text{ minute}", text))
    if text[-1:] in _ENDINGS:
        text = _SHORT.sub(r"\\text{ \1}", _LETTERS.sub(r"\\text{ \1}", text))
        text = _SECONDS.sub(r"\\text{ s}", text) if "\\text" in text else text
    return text


def _degrees(match: re.Match[str]) -> str:
    minutes, seconds = int(match[2]), int(match[3] or 0)
    if minutes >= 60 or seconds >= 60:
        return match.group()
    angle = int(match[1]) + Fraction(minutes, 60) + Fraction(seconds, 3600)
    return rf"\frac{{{angle.numerator}}}{{{angle.denominator}}}\degree "
