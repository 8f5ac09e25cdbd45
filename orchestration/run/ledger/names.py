"""What lies where in a run's folder; `folder` says what each of them is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from orchestration.errors import ConfigError

CONFIG_FILE: Final = "config.yaml"
METRICS_FILE: Final = "metrics.jsonl"
SUMMARY_FILE: Final = "summary.json"
RECORDS_FOLDER: Final = "records"
COMPLETIONS_FOLDER: Final = "completions"
ADAPTER_FOLDER: Final = "adapter"
CHECKPOINTS_FOLDER: Final = "checkpoints"
SET_ASIDE_FOLDER: Final = "set-aside"
REPORT_FILE: Final = "report.html"
AUDIT_FILE: Final = "audit.sqlite3"
EVENTS_FILE: Final = "events.jsonl"
TRAIL_FILE: Final = "trail.jsonl"
RESCORED_FOLDER: Final = "rescored"


def config_of(run_dir: Path) -> Path:
    """Where a run's settings lie; ConfigError if the folder is none of a run."""
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(f"{str(run_dir)!r} is not a run's folder: it has no {CONFIG_FILE}")
    return path
