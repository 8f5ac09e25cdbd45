"""The view on a terminal: bars and figures at the bottom, events scrolling by above."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from orchestration.report.outcome import read_outcome
from orchestration.report.text import one_line, percent
from orchestration.report.view import ViewState, render, render_example, render_outcome, render_start
from orchestration.run.metrics import Number
from orchestration.run.reporter import Level
from orchestration.settings.config import RunConfig

REFRESHES_PER_SECOND = 4
_STYLES: Mapping[Level, str] = {"info": "dim", "warning": "yellow", "error": "bold red"}


class LiveReporter:
    """Draws from a thread of its own, so the view moves while the loop is busy.

    The cursor is hidden meanwhile. `close` brings it back; so does the interpreter's end if nobody called `close`,
    but not a kill that Python does not notice (SIGKILL, an unhandled SIGTERM).
    """

    def __init__(self, console: Console, *, now: Callable[[], float] = time.monotonic) -> None:
        self._console, self._now = console, now
        self._state = ViewState(started=now(), phase_started=now())
        self._config: RunConfig | None = None
        self._live: Live | None = None

    def start(self, config: RunConfig, machine_line: str) -> None:
        self._config = config
        self._state.max_steps = config.max_steps
        self._state.started = self._now()
        self._console.print(render_start(config, machine_line))
        self._live = Live(
            console=self._console,
            get_renderable=self._view,
            refresh_per_second=REFRESHES_PER_SECOND,
            redirect_stdout=True,  # what other code prints goes above the view
            redirect_stderr=True,
        )
        atexit.register(self.close)
        self._live.start(refresh=True)

    def phase(self, name: str, detail: str = "", total: int | None = None) -> None:
        state = self._state
        state.phase, state.phase_detail, state.phase_started = one_line(name), one_line(detail), self._now()
        if total is not None:
            state.bar_phase, state.bar_done, state.bar_total = state.phase, 0, total
        if self._live is None:  # preparations, before there is a view
            self._print(Text(f"{state.phase} {state.phase_detail}".strip(), style="dim"))

    def progress(self, done: int, total: int) -> None:
        if total == self._state.bar_total:  # else it is of something that goes on behind this phase
            self._state.bar_done = done

    def step(self, row: Mapping[str, Number]) -> None:
        state = self._state
        state.row = row
        state.num_steps = int(row["step"] or 0)
        state.rewards.append(row.get("reward_mean"))
        state.step_seconds.append(row.get("step_s") or 0.0)

    def example(self, prompt_text: str, completion_text: str, rewards: Mapping[str, float | None]) -> None:
        self._print(render_example(self._state.num_steps, prompt_text, completion_text, rewards, self._console.width))

    def note(self, level: Level, message: str) -> None:
        prefix = "" if level == "info" else f"{level}: "
        self._print(Text(f"{prefix}{one_line(message)}", style=_STYLES[level]))

    def evaluation(self, when: str, accuracies: Mapping[str, float], n: int) -> None:
        self._state.evaluations.append((one_line(when), accuracies))
        figures = ", ".join(f"{name} {percent(accuracy, 1)}" for name, accuracy in accuracies.items())
        self._print(
            Text.assemble(
                (f"held-out accuracy {one_line(when)}: ", "bold"),
                f"{figures} of {n} problems",
            )
        )

    def finish(self, summary: Mapping[str, Any]) -> None:
        self._state.phase = ""  # nothing goes on any more
        self.close()
        for what, whole in render_outcome(read_outcome(summary, self._config)):
            self._console.print(what, soft_wrap=whole)

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            atexit.unregister(self.close)
            live.stop()

    def _view(self) -> RenderableType:
        return render(self._state, self._now(), self._console.width)

    def _print(self, what: RenderableType) -> None:
        self._console.print(what)
