"""Days and times of day in one spelling: `March 14th, 2015`, `14 March 2015`, `2015-03-14`; `3:30 p.m.`, `15:30`."""

from __future__ import annotations

import re
from typing import Final

_MONTHS: Final = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november"),
    "december",
)
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
_DATES: Final = (
    re.compile(r"(?P<year>[0-9]{4})-(?P<number>0[1-9]|1[0-2])-(?P<day>0[1-9]|[12][0-9]|3[01])"),
    re.compile(rf"{_MONTH} (?P<day>[0-9]{{1,2}}) ?,? (?P<year>[0-9]{{4}})"),
    re.compile(rf"(?P<day>[0-9]{{1,2}})(?: of)? {_MONTH},? (?P<year>[0-9]{{4}})"),
)
_CLOCK: Final = re.compile(r"(?P<hour>[0-9]{1,2}):(?P<rest>[0-9]{2}(?::[0-9]{2})?)(?:(?P<half>[ap])\.?m\.?)?")


def date_or_time(smooth: str) -> str | None:
    """A date as year, month and day; a time of the afternoon by 24 hours; else None."""
    words = " ".join(re.sub(r"\\text|[{}]", " ", smooth).lower().split())
    for pattern in _DATES:
        if (date := pattern.fullmatch(words)) is not None:
            parts = date.groupdict()
            month = int(parts.get("number") or _MONTHS.index(parts["month"]) + 1)
            return f"{parts['year']}-{month:02}-{int(parts['day']):02}"
    clock = _CLOCK.fullmatch(words.replace(" ", ""))
    if clock is None:
        return None
    hour, half = int(clock["hour"]), clock["half"] or ""
    if half == "p" and 1 <= hour <= 12:
        hour, half = hour % 12 + 12, ""
    return f"{hour}:{clock['rest']}{half}"
