"""The file of a run's rows, `metrics.jsonl`: one JSON object a line, one line a step, in order."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import lock_descriptor

from orchestration.errors import ConfigError
from orchestration.storage.atomic import atomic_write


class RowsFile:
    """Held open, unbuffered and locked: whoever has it is its folder's only writer. Its methods raise OSError."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file, with a half-written last line cut off.

        Raises:
            ConfigError: another process has it.
        """
        self._path, self._file = path, _locked(path)
        self._last: tuple[int, bytes] | None = None
        self._file.truncate(path.read_bytes().rfind(b"\n") + 1)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a step's row; what is written of a line that cannot be finished is taken back."""
        line = to_json(row) + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._write(line)
        except OSError:
            with suppress(OSError):  # the first error is the one to tell; opening repairs what this cannot
                self._file.truncate(end)
            raise
        self._last = row["step"], line

    def is_there(self) -> bool:
        """Whether it still lies where it was opened: its folder may have been moved or removed, and made anew."""
        return self._path.exists() and os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())

    def line_of(self, step: int) -> bytes | None:
        """The line that was appended last, if it is this step's."""
        return self._last[1] if self._last is not None and self._last[0] == step else None

    def from_step(self, step: int) -> bytes:
        """All but the leading lines that are whole rows of steps before `step`."""
        content = self._path.read_bytes()
        return content[_bytes_before_step(content, step) :]

    def cut(self, end: bytes) -> None:
        """Take away what `from_step` gave."""
        self._file.truncate(self._path.stat().st_size - len(end))

    def add_missing(self, rows: Mapping[int, Mapping[str, Any]]) -> None:
        """Put rows of steps that have none in their places; the file is whole at any time, the old or the new."""
        lines = _lines_by_step(self._path.read_bytes())
        if missing := {step: to_json(row) + b"\n" for step, row in rows.items() if step not in lines}:
            atomic_write(self._path, b"".join(line for _, line in sorted((lines | missing).items())))
            old, self._file = self._file, _locked(self._path)
            old.close()

    def close(self) -> None:
        """Let another process take it."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:  # an unbuffered write may take only a part, for example of the last free block
            rest = rest[self._file.write(rest) :]


def _locked(path: Path) -> FileIO:
    """Open for appending, and held. Raises ConfigError: another process has it."""
    file = FileIO(path, "a+")
    try:
        is_ours = lock_descriptor(file.fileno(), blocking=False)
    except OSError:
        is_ours = True  # some network file systems have no locks; there the user has to keep runs apart
    if not is_ours:
        file.close()
        raise ConfigError(f"another run is writing to run_dir={str(path.parent)!r}; choose another run_dir")
    return file


def to_json(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    """JSON that any reader takes: it knows no NaN and no infinity, which become null at any depth.

    Args:
        value: Names → numbers, texts, lists and mappings.
        indent: Spaces a level; None: all on one line.

    Returns:
        UTF-8; what has no form in it is replaced.
    """
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=indent).encode("utf-8", "replace")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _bytes_before_step(content: bytes, step: int) -> int:
    """Length of the leading lines that are whole rows of steps before `step`."""
    length = 0
    for line in content.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(row, dict) or not row.get("step", step) < step:
            break
        length += len(line)
    return length


def _lines_by_step(content: bytes) -> dict[int, bytes]:
    """The whole rows."""
    lines = {}
    for line in content.splitlines(keepends=True):
        try:
            lines[int(json.loads(line)["step"])] = line
        except (ValueError, TypeError, KeyError):
            continue
    return lines
