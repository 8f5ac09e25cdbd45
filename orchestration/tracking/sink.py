"""What a tracker has to take, and how it is kept from holding up or ending a run."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

MOST_WAITING: Final = 1000
"""Calls that a tracker may be behind with before it is given up."""
CLOSE_S: Final = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracked:
    """A run as trackers are told of it."""

    project: str
    name: str
    folder: Path
    settings: Mapping[str, str | int | float | bool]
    """By dotted key, without secrets."""


class Sink(Protocol):
    """One tracker's record of one run. Opened when it is made; calls may block, and come from one thread."""

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Numbers of a step.

        Args:
            step: Of the run; figures of one step may come in several calls.
            figures: By name; finite.
        """
        ...

    def artefact(self, path: Path, name: str) -> None:
        """A file or a folder of the run.

        Args:
            path: On this machine.
            name: What it is called there.
        """
        ...

    def close(self, *, finished: bool) -> None:
        """The run is over: as planned, or not.

        Args:
            finished: False: stopped, or failed.
        """
        ...


class Guarded:
    """A sink on a thread of its own. What it fails at is kept as a sentence, and it is left alone from then on."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name = name
        self._sink = sink
        self._calls: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(MOST_WAITING)
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._gone = False
        self._thread = threading.Thread(target=self._work, name=f"tracking {name}", daemon=True)
        self._thread.start()

    def put(self, call: Callable[[Sink], None]) -> None:
        """Have it done; never waits.

        Args:
            call: Run on the sink's own thread; once one raises, no more are.
        """
        if self._gone:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._give_up(f"it is {MOST_WAITING} calls behind")

    def said(self) -> Iterator[str]:
        """What went wrong since it was asked last."""
        while not self._said.empty():
            yield self._said.get()

    def close(self, *, finished: bool, timeout_s: float = CLOSE_S) -> None:
        """Waits for what was put, as long as that takes no longer than the time-out.

        Args:
            finished: False: the run was stopped, or failed.
            timeout_s: What is not sent by then is given up, and said.
        """
        self.put(lambda sink: sink.close(finished=finished))
        if not self._gone:
            self._calls.put(None)
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                self._give_up(f"it did not take its last figures within {timeout_s:g} s")

    def _work(self) -> None:
        while (call := self._calls.get()) is not None and not self._gone:
            try:
                call(self._sink)
            except Exception as error:  # whatever a tracker raises, the run goes on
                self._give_up(" ".join(str(error).split()) or type(error).__name__)

    def _give_up(self, why: str) -> None:
        self._gone = True
        self._said.put(f"{self.name} is told nothing more of this run: {why}")
