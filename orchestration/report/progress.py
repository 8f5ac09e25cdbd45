"""Progress of one preparation, on a terminal's error stream; silent elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from orchestration.report.text import one_line


@contextmanager
def progress_printer(stream: TextIO) -> Iterator[Callable[[str, float], None]]:
    """A callback (what is being done, share done) that keeps one line up to date; the line is cleared at the end."""

    def show(message: str, share: float) -> None:
        if stream.isatty():
            stream.write(f"\r\x1b[K{one_line(message)} {share:.0%}")
            stream.flush()

    try:
        yield show
    finally:
        if stream.isatty():
            stream.write("\r\x1b[K")
            stream.flush()
