"""A run's folder in the view of a terminal: what `rlvr train` shows, as far as its files say it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.text import Text

from orchestration.page.data import Run
from orchestration.report.outcome import read_outcome
from orchestration.report.text import duration, one_line
from orchestration.report.view import ViewState, render, render_outcome

MOST_ALARMS: Final = 5


def glance(run: Run, *, since_s: float, silent: bool, width: int) -> RenderableType:
    """A run at a glance, at most `width` columns wide.

    Args:
        since_s: how long ago the last of its files changed, seconds.
        silent: that is longer than is usual.
    """
    model, task = (run.config.get(name) or {} for name in ("model", "data"))
    head = Text.assemble(
        (one_line(run.name), "bold"),
        f" · {one_line(str(model.get('name')))} on {one_line(str(task.get('kind')))} · {run.status}",
    )
    now = time.monotonic()
    parts: list[RenderableType] = [head, render(_state(run, now, since_s), now, width), *_alarms(run)]
    if silent and run.status == "under way":
        parts.append(Text(f"nothing was written for {duration(since_s)}: the run may have been killed", style="yellow"))
    if run.summary:
        parts += [what for what, _ in render_outcome(read_outcome(run.summary, None))]
    return Group(*parts)


def _state(run: Run, now: float, since_s: float) -> ViewState:
    rows = run.rows
    seconds = sum(float(row.get("step_s") or 0.0) for row in rows)
    goes_on = run.status == "under way"
    state = ViewState(
        started=now - seconds - (since_s if goes_on else 0.0),
        max_steps=int(run.config.get("max_steps") or 0),
        num_steps=len(rows),
        phase="under way" if goes_on else "",
        phase_detail=f"step {len(rows) + 1}",
        phase_started=now - since_s,
        row=rows[-1] if rows else {},
        rewards=[row.get("reward_mean") for row in rows],
        evaluations=[(f"after step {event['step']}", event["accuracies"]) for event in run.evaluations],
    )
    state.step_seconds.extend(float(row.get("step_s") or 0.0) for row in rows[-10:])
    return state


def _alarms(run: Run) -> Iterator[Text]:
    for alarm in run.alarms[-MOST_ALARMS:]:
        yield Text(one_line(f"! {alarm['name']}, step {alarm['step']}: {alarm['sentence']}"), style="yellow")
    if len(run.alarms) > MOST_ALARMS:
        yield Text(f"  and {len(run.alarms) - MOST_ALARMS} alarms before", style="dim")
