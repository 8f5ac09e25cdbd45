"""Line charts as SVG: pure functions of numbers. Colours, light and dark, are the style sheet's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

Point = tuple[float, float]

WIDTH, HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 22
_MOST_TICKS: Final = 5
NUM_COLOURS: Final = 8
NUM_DASHES: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    """(step, value), by step."""
    band: Sequence[tuple[float, float, float]] = ()
    """(step, low, high): what is drawn behind the line."""
    colour: int = 0
    dash: int = 0
    """Which pattern; 0: drawn through."""
    gap: float = math.inf
    """Of neighbouring steps; nothing is drawn between those that lie further apart."""


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    note: str = "",
    marks: Iterable[tuple[float, str]] = (),
    x_name: str = "step",
) -> str:
    """A figure with a caption, a legend and lines over steps; empty where no line has a point.

    Args:
        note: one sentence below the title.
        marks: (step, what happened): vertical lines.
        x_name: what a step is called, where it is something else.
    """
    drawn = [line for line in lines if line.points]
    if not drawn:
        return ""
    xs = [x for line in drawn for x, _ in line.points]
    ys = [y for line in drawn for _, y in line.points] + [y for line in drawn for b in line.band for y in b[1:]]
    x_ticks, y_ticks = ticks(min(xs), max(xs), whole=True), ticks(min(ys), max(ys))
    scale = _Scale(min(xs), max(xs), min(y_ticks[0], *ys), max(y_ticks[-1], *ys))
    parts = [
        *(_grid_line(scale, y, label(y, y_ticks[1] - y_ticks[0])) for y in y_ticks),
        *(_x_label(scale, x) for x in x_ticks),
        *(_mark(scale, x, told) for x, told in marks if min(xs) <= x <= max(xs)),
        *(_band(scale, line) for line in drawn if line.band),
        *(_path(scale, line, x_name) for line in drawn),
    ]
    named = dict.fromkeys(f'<span class="c{line.colour}{_dash(line)}">{escape(line.name)}</span>' for line in drawn)
    told = f"<small>{escape(note)}</small>" if note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{told}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<div class="legend">{"".join(named)}</div></figure>'
    )


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Round numbers for an axis, few of them.

    Args:
        low: The smallest value.
        high: The largest; may be the same.
        whole: Whole numbers alone, and none outside.

    Returns:
        In order; but for `whole` from at most `low` to at least `high`.
    """
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # a constant, but for rounding
        if whole:
            return [low]
        middle = (low + high) / 2  # drawn from 0 on, as a window of its own would make much of nothing
        low, high = min(0.0, middle), max(0.0, middle) or 0.5 * (middle == 0.0)
    raw = (high - low) / _MOST_TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    if whole:
        step = max(1.0, float(round(step)))
        return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)] or [low]
    return [step * n for n in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def label(value: float, step: float = 0.0) -> str:
    """A number as an axis shows it: 0.05, 3, 12k, 1.5M, 2e-6; with as many digits as a difference of `step` needs."""
    size = abs(value)
    digits = max(3, math.ceil(math.log10(size / step) + 1e-9) + 1) if step and size > step else 3
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.{digits}g}{unit}"
    return f"{value:.{digits}g}" if size >= 1e-3 or not size else f"{value:.2g}".replace("e-0", "e-")


@dataclass(frozen=True, slots=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> str:
        share = (value - self.x_low) / (self.x_high - self.x_low) if self.x_high > self.x_low else 0.5
        return f"{_LEFT + share * (WIDTH - _LEFT - _RIGHT):.1f}"

    def y(self, value: float) -> str:
        share = (value - self.y_low) / (self.y_high - self.y_low) if self.y_high > self.y_low else 0.5
        return f"{HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM):.1f}"


def _grid_line(scale: _Scale, y: float, told: str) -> str:
    at = scale.y(y)
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{at}" text-anchor="end" dominant-baseline="middle">{told}</text>'
    )


def _x_label(scale: _Scale, x: float) -> str:
    return f'<text class="tick" x="{scale.x(x)}" y="{HEIGHT - 6}" text-anchor="middle">{label(x)}</text>'


def _mark(scale: _Scale, x: float, told: str) -> str:
    at = scale.x(x)
    line = f'<line class="mark" x1="{at}" x2="{at}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}">'
    return f"{line}<title>{escape(told)}</title></line>"


def _band(scale: _Scale, line: Line) -> str:
    there = [f"{scale.x(x)},{scale.y(high)}" for x, _, high in line.band]
    back = [f"{scale.x(x)},{scale.y(low)}" for x, low, _ in reversed(line.band)]
    return f'<polygon class="band c{line.colour}" points="{" ".join([*there, *back])}"/>'


def _dash(line: Line) -> str:
    return f" d{line.dash}" if line.dash else ""


def _path(scale: _Scale, line: Line, x_name: str) -> str:
    last_x, last_y = line.points[-1]
    values = f"{line.name}: {label(last_y)} at {x_name} {last_x:g}"
    shapes = "".join(_piece(scale, line, piece) for piece in _pieces(line))
    return f"<g><title>{escape(values)}</title>{shapes}</g>"


def _pieces(line: Line) -> Iterator[Sequence[Point]]:
    """The line, cut at its gaps."""
    cuts = [n for n, (one, other) in enumerate(pairwise(line.points), 1) if other[0] - one[0] > line.gap]
    for start, stop in pairwise([0, *cuts, len(line.points)]):
        yield line.points[start:stop]


def _piece(scale: _Scale, line: Line, points: Sequence[Point]) -> str:
    if len(points) == 1:
        ((x, y),) = points
        return f'<circle class="dot c{line.colour}" cx="{scale.x(x)}" cy="{scale.y(y)}" r="3"/>'
    there = " ".join(f"{scale.x(x)},{scale.y(y)}" for x, y in points)
    return f'<polyline class="line c{line.colour}{_dash(line)}" points="{there}"/>'
