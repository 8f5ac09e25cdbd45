"""A run's reporter that tells trackers too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestration.run.metrics import Number
from orchestration.run.reporter import Level, Reporter
from orchestration.settings.config import RunConfig
from orchestration.tracking.sink import Guarded, Sink

EVALUATION = "eval_{judge}_accuracy"


class TrackingReporter:
    """Passes everything on to the reporter it is made with, and to trackers what they take: figures by step, held-out
    accuracies, and at the end what of the run's folder is to be kept.

    Args:
        reporter: the one that shows the run.
        sinks: opened trackers by name; they are closed with it.
        artefacts: called at the run's end with its summary; files and folders to be kept.
    """

    def __init__(
        self,
        reporter: Reporter,
        sinks: Mapping[str, Sink],
        artefacts: Callable[[Mapping[str, Any]], Iterable[Path]] = lambda summary: (),
    ) -> None:
        self._reporter = reporter
        self._sinks = [Guarded(name, sink) for name, sink in sinks.items()]
        self._artefacts = artefacts
        self._step = 0
        self._closed = False

    def add(self, name: str, sink: Sink, first: Callable[[Sink], None]) -> None:
        """One more sink, opened when the rooms are up.

        Args:
            name: For the warning when it fails, which leaves it alone from then on.
            sink: Called on a thread of its own.
            first: What is called there first.
        """
        self._sinks.append(Guarded(name, sink))
        self._sinks[-1].put(first)

    def start(self, config: RunConfig, machine_line: str) -> None:
        self._reporter.start(config, machine_line)

    def phase(self, name: str, detail: str = "", total: int | None = None) -> None:
        self._reporter.phase(name, detail, total)

    def progress(self, done: int, total: int) -> None:
        self._reporter.progress(done, total)

    def example(self, prompt_text: str, completion_text: str, rewards: Mapping[str, float | None]) -> None:
        self._reporter.example(prompt_text, completion_text, rewards)

    def note(self, level: Level, message: str) -> None:
        self._reporter.note(level, message)

    def step(self, row: Mapping[str, Number]) -> None:
        self._reporter.step(row)
        self._step = int(row["step"] or 0)
        known = {name: float(value) for name, value in row.items() if value is not None and math.isfinite(value)}
        self._tell({name: value for name, value in known.items() if name != "step"})

    def evaluation(self, when: str, accuracies: Mapping[str, float], n: int) -> None:
        self._reporter.evaluation(when, accuracies, n)
        self._tell({EVALUATION.format(judge=judge): value for judge, value in accuracies.items()})

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._reporter.finish(summary)
        for path in self._artefacts(summary):
            for sink in self._sinks:
                sink.put(lambda sink, path=path: sink.artefact(path, path.name))  # type: ignore[misc]
        self._end(finished=summary.get("status") == "finished")

    def close(self) -> None:
        self._end(finished=False)
        self._reporter.close()

    def _tell(self, figures: Mapping[str, float]) -> None:
        step = self._step
        for sink in self._sinks:
            sink.put(lambda sink: sink.figures(step, figures))
        self._pass_on()

    def _end(self, *, finished: bool) -> None:
        if not self._closed:
            self._closed = True
            for sink in self._sinks:
                sink.close(finished=finished)
            self._pass_on()

    def _pass_on(self) -> None:
        for sink in self._sinks:
            for sentence in sink.said():
                self._reporter.note("warning", sentence)
