"""What a person sees of a run: a live view on a terminal, plain lines elsewhere, before and after at the end."""

from __future__ import annotations

import os
import sys
from typing import TextIO

from orchestration.run.reporter import Level, Reporter

__all__ = ["Level", "Reporter", "make_reporter"]


def make_reporter(stream: TextIO | None = None) -> Reporter:
    """Choose how a run is shown.

    Args:
        stream: Where to; standard output if unset.

    Returns:
        The live view when `stream` is a terminal that can show it, else plain lines. `TERM=dumb` and an encoding other
        than UTF-8 mean plain lines; `NO_COLOR` keeps the live view, without colours.
    """
    stream = sys.stdout if stream is None else stream
    dumb = os.environ.get("TERM", "dumb").lower() in ("", "dumb", "unknown")
    utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
    if stream.isatty() and utf8 and not dumb:
        from rich.console import Console

        from orchestration.report.live import LiveReporter

        return LiveReporter(Console(file=stream, highlight=False))
    from orchestration.report.plain import PlainReporter

    return PlainReporter(stream)
