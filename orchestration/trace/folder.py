"""A run's folder as a trace reads it: tables, rows, checksums. Nothing is written, and the audit log is opened last."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestration.errors import DataError
from orchestration.run.ledger.names import AUDIT_FILE, COMPLETIONS_FOLDER, METRICS_FILE, config_of
from orchestration.run.ledger.records import read_record, recorded_steps
from orchestration.run.ledger.trail import Line, read_trail

_TABLE = re.compile(r"step-(\d{6,})\.parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedRun:
    """A run's folder, and what its trail says."""

    path: Path
    trail: tuple[Line, ...]
    """Empty where the run kept none."""

    @classmethod
    def open(cls, path: Path) -> TracedRun:
        """A run's folder and its trail, which may be none.

        Raises:
            ConfigError: This is no run's folder.
        """
        config_of(path)
        return cls(path=path, trail=tuple(read_trail(path)))

    @property
    def audit_log(self) -> Path | None:
        """None where the run kept none."""
        path = self.path / AUDIT_FILE
        return path if path.is_file() else None

    @property
    def run_ids(self) -> list[str]:
        """By which its starts were known to the reward service, the newest first."""
        begun = [line.entry["run_id"] for line in self.trail if "run_id" in line.entry]
        return [*dict.fromkeys(reversed(begun))] or [self.path.name]

    def table_path(self, step: int) -> Path:
        return self.path / COMPLETIONS_FOLDER / f"step-{step:06d}.parquet"

    def table_steps(self) -> list[int]:
        """Steps with a table of completions, in order."""
        matches = (_TABLE.fullmatch(path.name) for path in (self.path / COMPLETIONS_FOLDER).glob("*.parquet"))
        return sorted(int(match[1]) for match in matches if match is not None)

    def completions(self, step: int) -> list[dict[str, Any]]:
        """A step's table.

        Returns:
            A mapping a completion, by column.

        Raises:
            DataError: It cannot be read.
        """
        from pyarrow import ArrowException, parquet

        path = self.table_path(step)
        try:
            rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        except (OSError, ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
        return rows

    def metrics_lines(self) -> Iterator[tuple[bytes, Mapping[str, Any] | None]]:
        """The lines of metrics.jsonl, with what they say; None: one that cannot be read.

        Yields:
            The line with its end, byte for byte, and its row.
        """
        path = self.path / METRICS_FILE
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            yield line, row if isinstance(row, dict) else None

    def adapters(self) -> Adapters:
        """The adapters' checksums, by the trail, and by records where it says nothing."""
        known = {0: ""}
        for line in self.trail:
            if line.entry.get("kind") == "step":
                known[line.entry["step"]] = line.entry["adapter"]
        for step in recorded_steps(self.path):
            if step not in known:
                known[step] = read_record(self.path, step).adapter
        return Adapters(by_version=known)


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapters:
    """SHA-256 of each version's tensors."""

    by_version: Mapping[int, str] = field(default_factory=dict)

    def of(self, version: int) -> str | None:
        """The checksum of a version's tensors.

        Returns:
            Hexadecimal; empty: the base model alone, version 0; None: not known.
        """
        if version == 0:
            return ""
        return self.by_version.get(version) or None
