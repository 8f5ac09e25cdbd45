"""The lines of `rlvr bench gpu` as tables in Markdown, for a README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_WIDEST = 10
"""Figures beside each other."""
_OWN = ("part", "case")


def summary(lines: Sequence[dict[str, Any]], *, card: str) -> str:
    """One table of parts and how they ended, then one of figures for each part that has some."""
    ends = [line for line in lines if "status" in line]
    rows = [[line["part"], line["status"].partition("; see ")[0], line.get("seconds", "")] for line in ends]
    pieces = [f"Measured on {card}.", "\n".join(_table(["part", "outcome", "seconds"], rows))]
    for part in dict.fromkeys(line["part"] for line in lines if "case" in line):
        own = [line for line in lines if line["part"] == part and "case" in line]
        names = list(dict.fromkeys(name for line in own for name in line if name not in _OWN))
        head, rows = [part, *names], [[line["case"], *(line.get(name, "") for name in names)] for line in own]
        if len(names) > _WIDEST:  # many figures of few things read better downwards
            head = [part, "figure", "value"]
            rows = [[line["case"], name, line[name]] for line in own for name in names if name in line]
        pieces.append("\n".join(_table(head, rows)))
    return "\n\n".join(pieces)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(map(_cell, row))} |" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")
