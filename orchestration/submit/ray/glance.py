"""A run at a glance from what its cluster's dashboard carries: the job's line and figures, its actors, its log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestration.errors import SubmitError
from orchestration.report.text import duration, one_line, sanitise
from orchestration.settings.names import nearest
from orchestration.submit.common.job import JobState
from orchestration.submit.ray.jobs import RayJobs

MOST_LINES: Final = 6
"""Of the job's log."""
_SHOWN: Final = ("recipe", "run_folder", "reward_mean", "accuracy", "rollout_tokens_per_s", "learner_tokens_per_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobView:
    """One job, or a driver that nobody submitted, as the dashboard has it."""

    name: str
    """A submitted job's, else the driver's number."""
    submitted: bool
    state: JobState
    message: str
    """For a run under way: its step, reward and speed."""
    figures: Mapping[str, str]
    """What the run wrote beside its job: recipe, run folder, the last step's figures."""
    seconds: float
    """Since it began, or how long it took."""
    actors: Sequence[str] = ()
    """One line each."""
    others: Sequence[str] = ()
    """Jobs that run beside it."""


def look(jobs: RayJobs, name: str | None = None) -> JobView:
    """How a job stands; without a name the run that began last, rather one under way than one that has ended.

    Raises SubmitError: there is none, or the dashboard refuses; UnreachableError: it does not answer.
    """
    rows = jobs.details()
    found = [row for row in rows if name in (None, _name(row))]
    if not found:
        hint = "" if name is None else f" {name!r}{nearest(name, [_name(row) for row in rows])}"
        raise SubmitError(f"the Ray cluster at {jobs.address} has no job{hint}; `rlvr submit` sends one")
    row = max(found, key=_rank)
    began, ended = row.get("start_time") or 0, row.get("end_time") or 1000 * time.time()
    return JobView(
        name=_name(row),
        submitted=bool(row.get("submission_id")),
        state=_state(row),
        message=one_line(row.get("message") or ""),
        figures={key: str(value) for key, value in (row.get("metadata") or {}).items()},
        seconds=max(0.0, ended - began) / 1000 if began else 0.0,
        actors=jobs.actor_texts(row.get("job_id")),
        others=[_name(one) for one in rows if one is not row and _state(one) is JobState.RUNNING],
    )


def render(job: JobView, log: str, *, trouble: str = "") -> RenderableType:
    """The view; what the cluster says is shown as text that a terminal may be given.

    Args:
        log: all that the job has printed; its end is shown.
        trouble: one sentence, last.
    """
    head = Text.assemble((one_line(job.name), "bold"), f" · {job.state.value} · {duration(job.seconds)}")
    parts: list[RenderableType] = [head]
    if job.message:
        parts.append(Text(job.message))
    parts += [_figures(job), *(Text(one_line(actor)) for actor in job.actors), *_end_of(log)]
    if job.others:
        parts.append(Text(f"beside it: {', '.join(map(one_line, job.others))} (--job NAME)", style="dim"))
    if trouble:
        parts.append(Text(one_line(trouble), style="yellow"))
    return Group(*parts)


def _figures(job: JobView) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name in _SHOWN:
        if name in job.figures:
            table.add_row(name.replace("_", " "), Text(one_line(job.figures[name])))
    return table


def _end_of(log: str) -> Iterator[Text]:
    lines = [line for line in sanitise(log).splitlines() if line.strip()]
    return (Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in lines[-MOST_LINES:])


def _name(row: Mapping[str, Any]) -> str:
    return str(row.get("submission_id") or row.get("job_id"))


def _state(row: Mapping[str, Any]) -> JobState:
    return JobState(str(row["status"]).lower())


def _rank(row: Mapping[str, Any]) -> tuple[bool, bool, int]:
    """Ours before others', under way before ended, late before early."""
    return "recipe" in (row.get("metadata") or {}), not _state(row).ended, row.get("start_time") or 0
