"""Small pure functions from values to text that fits on a line."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Sequence

DASH = "–"
_BARS = "▁▂▃▄▅▆▇█"


def sanitise(text: str) -> str:
    """Text from a model that a terminal may be given: nothing in it moves the cursor, changes colours or direction.

    Line feeds stay. Tabs become spaces, control characters their pictures (ESC is ␛), and invisible format
    characters, private ones and lone surrogates the replacement character.
    """
    return "".join(map(_shown, text.replace("\r\n", "\n")))


def _shown(char: str) -> str:
    if char == "\n" or (char.isascii() and char.isprintable()):
        return char
    if char == "\t":
        return "  "
    if ord(char) < 0x20:
        return chr(0x2400 + ord(char))
    return "\ufffd" if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else char


def one_line(text: str) -> str:
    """Sanitised, with all white space in a row as one space."""
    return " ".join(sanitise(text).split())


def head(text: str, *, max_chars: int, max_lines: int) -> str:
    """The beginning, saying how much was left out."""
    kept = "\n".join(text[:max_chars].split("\n")[:max_lines])
    left_out = len(text) - len(kept)
    return f"{kept}… ({left_out:,} more characters)" if left_out else kept


def tail(text: str, *, max_chars: int, max_lines: int) -> str:
    """The end, with a mark when something was left out."""
    kept = "\n".join(text[-max_chars:].split("\n")[-max_lines:])
    return f"…{kept}" if len(kept) < len(text) else kept


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Values over time in at most `width` characters, lowest to highest; neighbours are averaged to fit.

    A value that is None or not finite leaves a gap; equal values are drawn half way up.
    """
    width = min(width, len(values))
    if width <= 0:
        return ""
    edges = [index * len(values) // width for index in range(width + 1)]
    means = [_finite_mean(values[start:end]) for start, end in itertools.pairwise(edges)]
    known = [mean for mean in means if mean is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    middle = 0 if scale else len(_BARS) // 2 - 1
    return "".join(" " if mean is None else _BARS[middle + round((mean - low) * scale)] for mean in means)


def _finite_mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None


def duration(seconds: float) -> str:
    """`8.2 s`, `45 s`, `3m 04s`, `2h 05m`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m"


def number(value: float | int | None, digits: int = 3) -> str:
    """So many significant digits, thousands apart; a dash when there is none."""
    if value is None or not math.isfinite(value):
        return DASH
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def fixed(value: float | int | None, digits: int = 2) -> str:
    """So many digits behind the point; a dash when there is none."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def percent(fraction: float | int | None, digits: int = 0) -> str:
    """`52 %`; a dash when there is none."""
    return DASH if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.{digits}f} %"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return f"{100 * difference:+.1f}"


def shares(seconds: dict[str, float], *, at_least: float = 0.0) -> list[tuple[str, float]]:
    """Each phase's share of the sum, the largest first.

    Args:
        seconds: By phase.
        at_least: Phases with less than this share of the sum are left out.

    Returns:
        (phase, share of the sum), shares from 0 to 1.
    """
    total = math.fsum(seconds.values())
    parts = [(name, value / total) for name, value in seconds.items()] if total > 0 else []
    return sorted((part for part in parts if part[1] >= at_least), key=lambda part: -part[1])
