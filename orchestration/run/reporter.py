"""What the loop tells, whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from orchestration.run.metrics import Number
from orchestration.settings.config import RunConfig

Level = Literal["info", "warning", "error"]
Note = Callable[[Level, str], None]
"""Told what a person should know, in a sentence."""


class Reporter(Protocol):
    """Events of one run, in the order they happen. `close` may be called at any time, and more than once."""

    def start(self, config: RunConfig, machine_line: str) -> None:
        """The run begins; `machine_line` says on what."""
        ...

    def phase(self, name: str, detail: str = "", total: int | None = None) -> None:
        """What is done now.

        Args:
            name: As `evaluation`.
            detail: What of it.
            total: How much there is to do; with it `progress` will follow.
        """
        ...

    def progress(self, done: int, total: int) -> None:
        """How far the last phase with a total is; reports with another total are passed over."""
        ...

    def step(self, row: Mapping[str, Number]) -> None:
        """A step is done; `row` is what `metrics.step_row` made."""
        ...

    def example(self, prompt_text: str, completion_text: str, rewards: Mapping[str, float | None]) -> None:
        """One completion, to look at. The texts are untrusted: they may hold anything.

        Args:
            prompt_text: As the model saw it.
            completion_text: What it said.
            rewards: By name; None: no score.
        """
        ...

    def note(self, level: Level, message: str) -> None:
        """Something a person should know."""
        ...

    def evaluation(self, when: str, accuracies: Mapping[str, float], n: int) -> None:
        """Held-out accuracy.

        Args:
            when: `before`, `after` or `step 20`.
            accuracies: By judge (`strict`, `lenient`), as fractions of `n`.
            n: How many problems were judged.
        """
        ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The run is over, done or stopped; `summary` is what `summary.json` holds."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...
