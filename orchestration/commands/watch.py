"""`rlvr watch`: a run at a glance, from another terminal than the one it runs in."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any, Final

from orchestration.errors import ConfigError
from orchestration.run.ledger.names import EVENTS_FILE, METRICS_FILE, SUMMARY_FILE

LOOK_S: Final = 1.0
_SILENT_S: Final = 600.0
"""After so long without a step it is said that the run may have been killed."""
_WATCHED: Final = (METRICS_FILE, EVENTS_FILE, SUMMARY_FILE)


def add_watch(commands: Any) -> None:
    """Adds `watch` to the commands of `rlvr`."""
    watch = commands.add_parser(
        "watch",
        help="a run at a glance, from another terminal",
        description="Shows a run's progress, rewards, accuracies, speed and alarms as `rlvr train` does, from the "
        "files of its folder, until it ends or Ctrl-C; from another machine where the folder is mounted there. Where "
        "the output is no terminal: once, and done.",
    )
    watch.add_argument("run_dir", metavar="RUN_DIR", type=_folder, help="the run's folder")
    watch.add_argument("--once", action="store_true", help="how it stands now, and done")
    watch.set_defaults(run=_watch)


def _folder(text: str) -> Path:
    if "://" in text:
        raise ArgumentTypeError(
            f"{text!r} is no folder; a job elsewhere is shown by `rlvr jobs logs`, a folder on S3 after `aws s3 sync`"
        )
    return Path(text)


def _watch(arguments: Any) -> int:
    from rich.console import Console
    from rich.live import Live

    from orchestration.page.data import read_run
    from orchestration.page.glance import glance

    console = Console(highlight=False)

    def view() -> Any:
        now = time.time()
        latest = max((path.stat().st_mtime for path in _there(arguments.run_dir)), default=now)
        run = read_run(arguments.run_dir, most_completions=0)
        return run, glance(run, since_s=now - latest, silent=now - latest > _SILENT_S, width=console.width)

    run, shown = view()
    if arguments.once or not console.is_terminal:
        console.print(shown)
        return 0
    with Live(shown, console=console, refresh_per_second=4) as live:
        while run.status == "under way":
            time.sleep(LOOK_S)
            try:
                run, shown = view()
            except ConfigError as error:  # a file that is just being written, or a folder that is gone
                if not arguments.run_dir.is_dir():
                    raise
                print(f"rlvr: {error}", file=sys.stderr)
                continue
            live.update(shown)
    return 0


def _there(run_dir: Path) -> list[Path]:
    return [path for name in _WATCHED if (path := run_dir / name).is_file()]
