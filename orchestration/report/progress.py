"""What a command that takes its time says on standard error: what it is doing, how far it is, and for how long."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from orchestration.report.text import duration, one_line
from orchestration.storage.cache import Progress

TICK_S = 0.5
SHORT_S = 1.0
"""Off a terminal, seconds before a new phase is named: most end sooner."""
BAR_WIDTH = 20
PACE_S = 10.0
"""Off a terminal, seconds between two lines of the same phase."""


@contextmanager
def progress_printer(stream: TextIO) -> Iterator[Progress]:
    """Yield a callback (what is being done, share done) that keeps a person informed until the block ends.

    What stands before the first comma of a message is its phase. On a terminal one line is kept up to date, and cleared
    at the end. Elsewhere a plain line comes when a phase has lasted `SHORT_S`, and again every `PACE_S` seconds, even
    if nothing is reported meanwhile.

    Args:
        stream: A terminal gets one line that changes, anything else a line now and then.
    """
    told = _TerminalLine(stream) if stream.isatty() else _PlainLines(stream)
    ended = threading.Event()

    def keep_telling() -> None:
        while not ended.wait(TICK_S):
            told.tick()

    thread = threading.Thread(target=keep_telling, name="progress", daemon=True)
    thread.start()
    try:
        yield told.report
    finally:
        ended.set()
        thread.join()
        told.close()


def counted(progress: Progress, total: int) -> Callable[[str], None]:
    """A callback that is told of each of `total` pieces of work when it begins.

    Args:
        progress: Told of each with the share that is done before it.
        total: Pieces of work; at least 1.
    """
    done = itertools.count()
    return lambda message: progress(message, min(1.0, next(done) / total))


class _PlainLines:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._message, self._share = "", 0.0
        self._began = self._line_at = time.monotonic()
        self._next_line_at = self._began + SHORT_S

    def report(self, message: str, share: float) -> None:
        """Take over what is done now."""
        with self._lock:
            if message.partition(",")[0] != self._message.partition(",")[0]:
                self._began = time.monotonic()
                self._next_line_at = min(self._began + SHORT_S, self._line_at + PACE_S)
            self._message, self._share = message, share

    def tick(self) -> None:
        """Write what is due."""
        with self._lock:
            now = time.monotonic()
            if self._message and now >= self._next_line_at:
                self._line_at, self._next_line_at = now, now + PACE_S
                self._write(f"rlvr: {self._line()}\n")

    def close(self) -> None:
        """Leave the stream as it was."""

    def _line(self) -> str:
        return f"{one_line(self._message)} {self._share:.0%}, {duration(time.monotonic() - self._began)}"

    def _write(self, text: str) -> None:
        with suppress(OSError):  # whoever read it went away: no reason to end
            self._stream.write(text)
            self._stream.flush()


class _TerminalLine(_PlainLines):
    def report(self, message: str, share: float) -> None:
        super().report(message, share)
        self.tick()

    def tick(self) -> None:
        with self._lock:
            if self._message:
                self._write(f"\r\x1b[K{self._line()}")

    def _line(self) -> str:
        done = round(BAR_WIDTH * min(1.0, max(0.0, self._share)))
        return f"{'━' * done}{'·' * (BAR_WIDTH - done)} {super()._line()}"

    def close(self) -> None:
        self._write("\r\x1b[K")
