"""`rlvr report`: the page of one or several runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from orchestration.errors import ConfigError, MachineError
from orchestration.page.data import Run, read_run
from orchestration.page.page import render
from orchestration.run.ledger.names import REPORT_FILE
from orchestration.storage.atomic import atomic_write

WATCH_S: Final = 5.0
"""Seconds between two readings of runs that are under way."""
MOST_COMPLETIONS: Final = 20_000
"""Of all runs together; the page then has some 20 MB."""


def report_path(run_dirs: Sequence[Path], out: Path | None) -> Path:
    """Where the page goes: into the run's folder, or with several runs into this one."""
    if out is not None:
        return out
    return run_dirs[0] / REPORT_FILE if len(run_dirs) == 1 else Path(REPORT_FILE)


def write_report(
    run_dirs: Sequence[Path],
    out: Path | None = None,
    *,
    watch: bool = False,
    on_written: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Write the page and return its path; with `watch` again and again until no run is under way.

    Raises:
        ConfigError: one of them is no run folder, or the page cannot be written there.
        MachineError: the disk is full, or fails.
    """
    path = report_path(run_dirs, out)
    while True:
        runs = [read_run(run_dir, most_completions=MOST_COMPLETIONS // len(run_dirs)) for run_dir in run_dirs]
        goes_on = watch and any(not run.summary for run in runs)
        _write(path, runs, WATCH_S if goes_on else None)
        on_written(path)
        if not goes_on:
            return path
        time.sleep(WATCH_S)


def _write(path: Path, runs: Sequence[Run], refresh_s: float | None) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, render(runs, refresh_s=refresh_s).encode("utf-8", "replace"))
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}; choose another --out") from error
    except OSError as error:
        raise MachineError(f"cannot write {path}: {error.strerror}; choose another --out") from error
