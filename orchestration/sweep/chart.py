"""The article's chart: accuracy before and after, by setting, with intervals and controls. Loads matplotlib."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from orchestration.run.intervals import Interval
from orchestration.sweep.outcome import Row

_WIDTH = 0.8
_CHARS_AN_INCH = 14
"""Of a title, at most."""
_LOWEST = 5.0
"""A bar that its label fits into, per cent."""


def draw(rows: Sequence[Row], *, title: str, note: str, kind: str) -> bytes:
    """A bar chart.

    Args:
        rows: of one rule.
        note: one sentence below: what the figures are.
        kind: `svg` or `png`.

    Raises ImportError where matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, no state

    matplotlib.rcParams["svg.hashsalt"] = "rlvr"  # equal figures give equal files
    groups = list(dict.fromkeys(row.settings for row in rows))
    series = ["before", *dict.fromkeys(row.label for row in rows)]
    width = 1.8 + 2.2 * max(len(groups), 2)
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(series):
        bars = [(at, found) for at, group in enumerate(groups) if (found := _interval(rows, group, name)) is not None]
        offset = (place - (len(series) - 1) / 2) * _WIDTH / len(series)
        _bars(axes, [at + offset for at, _ in bars], [found for _, found in bars], name, _WIDTH / len(series))
    axes.set_xticks(range(len(groups)), [group or "all" for group in groups])
    axes.set_ylabel("held-out accuracy, %")
    top = axes.get_ylim()[1] * 1.25  # room for the legend
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= min(top, 100)])  # none is above 100 %
    axes.set_ylim(0, top)
    axes.set_title(
        "\n".join(textwrap.fill(line, int(_CHARS_AN_INCH * width)) for line in title.splitlines()), fontsize=9
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    figure.supxlabel(note, fontsize=7, wrap=True)
    sink = io.BytesIO()
    figure.savefig(sink, format=kind, metadata={"Date": None} if kind == "svg" else None, dpi=150)
    return sink.getvalue()


def _interval(rows: Sequence[Row], group: str, name: str) -> Interval | None:
    for row in rows:
        if row.settings == group and name in ("before", row.label):
            return row.before if name == "before" else row.after
    return None


def _bars(axes: Any, places: Sequence[float], intervals: Sequence[Interval], name: str, width: float) -> None:
    heights = [100 * one.estimate for one in intervals]
    errors = [
        [100 * (one.estimate - one.low) for one in intervals],
        [100 * (one.high - one.estimate) for one in intervals],
    ]
    bars = axes.bar(places, heights, width * 0.92, yerr=errors, capsize=3, label=name, error_kw={"linewidth": 1})
    inside = [height >= _LOWEST for height in heights]
    texts = [f"{height:.0f}" for height in heights]
    labels = list(zip(texts, inside, strict=True))
    centred = [text if fits else "" for text, fits in labels]
    axes.bar_label(bars, centred, fontsize=7, label_type="center", color="white")
    axes.bar_label(bars, ["" if fits else text for text, fits in labels], fontsize=7, padding=2)
