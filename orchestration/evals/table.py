"""An evaluation's figures as a table in plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.evals.answers import GREEDY
from orchestration.report.text import percent, points

_TOKENS = "tokens"


def table_of(results: Mapping[str, Any]) -> str:
    """Rows: rules. Columns: base, adapter, their difference, with 95 % intervals."""
    found = results["held_out"]
    sides = list(found["sides"])
    rows = [["", *sides, *(["difference", "p"] if "difference" in found else [])]]
    for draw, by_name in found["sides"][sides[0]].items():
        for name in by_name:
            cells = [in_words(name, found["sides"][side].get(draw, {}).get(name)) for side in sides]
            changed = found.get("difference", {}).get(draw, {}).get(name)
            more = [] if "difference" not in found else [change(name, changed), p_value(changed)]
            rows.append([f"{name.replace('_', ' ')}{', greedy' if draw == GREEDY else ''}", *cells, *more])
    for category, of in found.get("by_category", {}).items():
        judged = [name for name in of[sides[0]] if name in results["judges"]]
        rows += [[f"{name}, {category}", *(in_words(name, of[side].get(name)) for side in sides)] for name in judged]
    adapter = "no adapter" if results["adapter"] is None else results["adapter"]
    head = f"{results['model']}, {adapter}: {found['num_problems']} held-out problems, {results['num_shots']} examples"
    return "\n".join([head, "", *aligned(rows), "", results["method"]])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose columns begin below each other."""
    width = max(map(len, rows))
    full = [[*row, *[""] * (width - len(row))] for row in rows]
    widths = [max(len(row[at]) for row in full) for at in range(width)]
    return ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in full]


def in_words(name: str, figure: Mapping[str, Any] | None) -> str:
    """`41.0 % [34.0, 48.0]`; of tokens their mean number."""
    if figure is None:
        return "–"
    low, high = figure["low"], figure["high"]
    if name == _TOKENS:
        return f"{figure['estimate']:.1f} [{low:.1f}, {high:.1f}]"
    return f"{percent(figure['estimate'], 1)} [{100 * low:.1f}, {100 * high:.1f}]"


def change(name: str, figure: Mapping[str, Any] | None) -> str:
    """`+41.0 [+34.0, +48.0]`, percentage points; of tokens their number."""
    if figure is None:
        return "–"
    of = (lambda value: f"{value:+.1f}") if name == _TOKENS else points
    return f"{of(figure['estimate'])} [{of(figure['low'])}, {of(figure['high'])}]"


def p_value(figure: Mapping[str, Any] | None) -> str:
    """McNemar's, where it has one.

    Returns:
        Empty where it has none.
    """
    if figure is None or "p" not in figure:
        return ""
    return "<0.0001" if figure["p"] < 1e-4 else f"{figure['p']:.4f}"
