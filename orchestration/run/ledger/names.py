"""What lies where in a run's folder; `folder` says what each of them is."""

from __future__ import annotations

from typing import Final

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
