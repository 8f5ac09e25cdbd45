"""`rlvr watch`: a run at a glance, from another terminal or machine than the one it runs on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from orchestration.errors import ConfigError, UnreachableError
from orchestration.run.ledger.names import EVENTS_FILE, METRICS_FILE, SUMMARY_FILE

LOOK_S: Final = 1.0
ASK_S: Final = 3.0
"""Between two looks at a dashboard, which answers from what it was told some seconds ago."""
_SILENT_S: Final = 600.0
"""After so long without a step it is said that the run may have been killed."""
_GIVE_UP_S: Final = 120.0
"""Of a dashboard that answered before."""
_WATCHED: Final = (METRICS_FILE, EVENTS_FILE, SUMMARY_FILE)

View = Callable[[], tuple[bool, Any]]
"""Whether the run goes on, and what a terminal shows of it."""


def add_watch(commands: Any) -> None:
    """Adds `watch` to the commands of `rlvr`."""
    watch = commands.add_parser(
        "watch",
        help="a run at a glance, from another terminal or machine",
        description="Shows a run's progress, rewards, accuracies, speed and alarms until it ends or Ctrl-C: from the "
        "files of its folder, or, given a Ray dashboard's address, from what its job carries. Where the output is no "
        "terminal: once, and done.",
    )
    watch.add_argument("place", metavar="RUN_DIR|ADDRESS", help="the run's folder, or http://HOST:8265")
    watch.add_argument("words", metavar="ray.KEY=VALUE", nargs="*", help="how an address is reached, as for `submit`")
    watch.add_argument("--job", metavar="NAME", help="at an address: this job, not the one that began last")
    watch.add_argument("--once", action="store_true", help="how it stands now, and done")
    watch.set_defaults(run=_watch)


def _watch(arguments: Any) -> int:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    is_address = "://" in arguments.place
    if not is_address and (arguments.words or arguments.job):
        raise ConfigError(f"{arguments.place!r} is a folder's name: --job and ray.KEY=VALUE belong to an address")
    if arguments.place.startswith("s3://"):
        raise ConfigError(f"{arguments.place!r} is no folder of this machine: `aws s3 sync` makes it one")
    view = _of_cluster(arguments) if is_address else _of_folder(Path(arguments.place), console)
    goes_on, shown = view()
    if arguments.once or not console.is_terminal:
        console.print(shown)
        return 0
    with Live(shown, console=console, refresh_per_second=4) as live:
        while goes_on:
            time.sleep(ASK_S if is_address else LOOK_S)
            goes_on, shown = view()
            live.update(shown)
    return 0


def _of_folder(run_dir: Path, console: Any) -> View:
    from orchestration.page.data import read_run
    from orchestration.page.glance import glance

    last: list[tuple[bool, Any]] = []

    def view() -> tuple[bool, Any]:
        now = time.time()
        latest = max((path.stat().st_mtime for path in _there(run_dir)), default=now)
        try:
            run = read_run(run_dir, most_completions=0)
        except ConfigError as error:  # a file that is just being written, or a folder that is gone
            if not last or not run_dir.is_dir():
                raise
            print(f"rlvr: {error}", file=sys.stderr)
            return last[0]
        since_s = max(0.0, now - latest)  # of two clocks, or of one that was set
        shown = glance(run, since_s=since_s, silent=since_s > _SILENT_S, width=console.width)
        last[:] = [(run.status == "under way", shown)]
        return last[0]

    return view


def _of_cluster(arguments: Any) -> View:
    from orchestration.submit.ray.glance import JobView, look, render
    from orchestration.submit.ray.local import jobs_of

    jobs = jobs_of(arguments.place, arguments.words)
    last: list[tuple[float, JobView, str]] = []

    def view() -> tuple[bool, Any]:
        try:
            job = look(jobs, arguments.job or (last[0][1].name if last else None))
            log = last[0][2] if last else ""
            if job.submitted and (not last or job.message != last[0][1].message):  # a step is one line of it
                log = jobs.log(job.name)
        except UnreachableError as error:
            if not last or time.monotonic() - last[0][0] > _GIVE_UP_S:
                raise
            return True, render(*last[0][1:], trouble=str(error))
        last[:] = [(time.monotonic(), job, log)]
        return not job.state.ended, render(job, log)

    return view


def _there(run_dir: Path) -> list[Path]:
    return [path for name in _WATCHED if (path := run_dir / name).is_file()]
