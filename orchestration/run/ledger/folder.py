"""The folder of one run, and the only place that knows what lies where in it.

    config.yaml                      the resolved settings
    records/step-000012.record       all that step 12 was made of: see `records`
    metrics.jsonl                    one JSON object a step, in order, each step once
    completions/step-000012.parquet  what step 12 learned from, one row a completion
    events.jsonl                     alarms and held-out accuracies, as they came
    adapter/                         the latest adapter, a peft folder
    checkpoints/step-000012/         what a stopped run goes on from: see `resume`
    set-aside/                       what an earlier start had of steps that could not be gone on from
    summary.json                     written at the end
    audit.sqlite3, trail.jsonl       with audit=true: the rewards' decisions; digests of all of the above, chained: see
                                     `trail`

Whole files are written beside their place and renamed, so a reader (or a crash) never meets half a file. Metrics,
completions and adapter follow from the records: what is missing of them at a start is written again.
"""

from __future__ import annotations

import errno
import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestration.errors import ConfigError, NoRoomError, RlvrError
from orchestration.run.ledger.names import (
    ADAPTER_FOLDER,
    COMPLETIONS_FOLDER,
    CONFIG_FILE,
    EVENTS_FILE,
    METRICS_FILE,
    RECORDS_FOLDER,
    SET_ASIDE_FOLDER,
    SUMMARY_FILE,
    TRAIL_FILE,
)
from orchestration.run.ledger.records import StepRecord, record_path, recorded_steps, write_record
from orchestration.run.ledger.resume import Resumable
from orchestration.run.ledger.rows import RowsFile, to_json
from orchestration.run.ledger.tables import table_bytes
from orchestration.run.ledger.trail import Trail
from orchestration.settings.config import RunConfig, dump_config
from orchestration.storage.atomic import atomic_write
from rollout_server.types import ADAPTER_WEIGHTS

_NEW_ADAPTER, _OLD_ADAPTER = ".adapter.new", ".adapter.old"


class RunFolder:
    """An open run folder; this process is its only writer until `close`.

    Reusing the folder of an unfinished run is allowed: what it has of the first step written, and of later ones, is
    set aside.
    """

    def __init__(
        self, path: Path, rows: RowsFile, config: bytes, resumable: Resumable | None = None, trail: Trail | None = None
    ) -> None:
        self.path, self._config = path, config
        self.resumable = resumable
        """Where the run goes on."""
        self._rows = rows
        self._first_write = True
        self._trail = trail

    @classmethod
    def create(cls, config: RunConfig, find: Callable[[Path], Resumable | None] = lambda path: None) -> RunFolder:
        """Make or take over the run's folder and write `config.yaml` into it.

        Args:
            find: finds out where the run goes on, or raises that it cannot; then nothing of the folder is changed.

        Raises:
            ConfigError: the folder holds something else, a finished run or a running one, or cannot be written.
            NoRoomError: the disk is full.
        """
        path = _choose_path(config)
        with _explained(path, ConfigError):
            path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign_content(path)
            with _explained(path / METRICS_FILE, ConfigError):
                rows = RowsFile(path / METRICS_FILE)
            try:
                resumable = find(path)
                _clear_leftovers(path)
                settings = dump_config(config).encode()
                atomic_write(path / CONFIG_FILE, settings)
                trail = _open_trail(path) if config.audit else None
            except BaseException:
                rows.close()
                if not (path / CONFIG_FILE).exists():  # a new folder: leave nothing that would look like somebody's
                    with suppress(OSError):
                        (path / METRICS_FILE).unlink()
                        path.rmdir()
                raise
        return cls(path, rows, settings, resumable, trail)

    @property
    def adapter_path(self) -> Path:
        return self.path / ADAPTER_FOLDER

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add a step's row (it must hold `step`) to `metrics.jsonl`; non-finite numbers become null.

        Raises:
            RlvrError: the line could not be written; what was written of it is taken back.
        """
        self._set_aside_later_steps(row["step"])
        with _explained(self.path / METRICS_FILE):
            self._rows.append(row)

    def append_event(self, event: Mapping[str, Any]) -> None:
        """Add an alarm or an evaluation to `events.jsonl`; of a step that is made again it may be there twice."""
        path = self.path / EVENTS_FILE
        with _explained(path), path.open("ab") as file:
            file.write(to_json(event) + b"\n")

    def note_step(self, step: int, adapter: str) -> None:
        """Put what was written of a step into the trail, where the run keeps one.

        Args:
            adapter: SHA-256 of the adapter's tensors, as in the record.
        """
        if self._trail is None:
            return
        files = [record_path(self.path, step), self._table_path(step)]
        with _explained(self.path / TRAIL_FILE):
            self._trail.step(step, files=files, row=self._rows.line_of(step), adapter=adapter)

    def seal(self) -> str | None:
        """Put the digests of all files into the trail: nothing of the run is written after that.

        Returns: the trail's last hash; None where the run keeps none.
        """
        if self._trail is None:
            return None
        with _explained(self.path / TRAIL_FILE):
            return self._trail.end()

    def write_record(self, record: StepRecord) -> None:
        """Write what a step was made of. Raises RlvrError, as do the other writers."""
        self._set_aside_later_steps(record.step)
        with _explained(record_path(self.path, record.step)):
            write_record(self.path, record)

    def write_table(self, record: StepRecord) -> None:
        """Write what a step learned from as parquet, one row a completion."""
        self._set_aside_later_steps(record.step)
        self._write_table(record)

    def _write_table(self, record: StepRecord) -> None:
        content, path = table_bytes(record), self._table_path(record.step)
        with _explained(path):
            path.parent.mkdir(exist_ok=True)
            atomic_write(path, content)

    def write_adapter(
        self, files: Sequence[tuple[str, bytes | memoryview]], tied: Sequence[tuple[str, str]] = ()
    ) -> Path:
        """Replace `adapter/` by a payload's files, as plain peft loads them.

        After a crash the folder is whole: the old or the new.

        Args:
            files: (name, content).
            tied: (name, the name its tensor is stored under): such tensors are written under both.
        """
        for name, _ in files:
            if name in ("", ".", "..") or Path(name).name != name:
                raise ValueError(f"{name!r} is not a plain file name")
        new, old = self.path / _NEW_ADAPTER, self.path / _OLD_ADAPTER
        with _explained(self.adapter_path):
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            try:
                for name, content in files:
                    whole = _with_tied_names(bytes(content), tied) if tied and name == ADAPTER_WEIGHTS else content
                    atomic_write(new / name, bytes(whole))
            except BaseException:
                shutil.rmtree(new, ignore_errors=True)
                raise
            # POSIX cannot swap folders in one call; between these renames only `.adapter.old` exists, and
            # `create` puts that back.
            if self.adapter_path.exists():
                self.adapter_path.rename(old)
            new.rename(self.adapter_path)
            shutil.rmtree(old, ignore_errors=True)
        return self.adapter_path

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write `summary.json`.

        Args:
            summary: A `status` other than "finished" leaves the folder open for another start.

        Returns:
            Where it lies.

        Raises:
            RlvrError: It could not be written; an earlier one is whole.
        """
        path = self.path / SUMMARY_FILE
        with _explained(path):
            atomic_write(path, to_json(summary, indent=2) + b"\n")
        return path

    def mark(self) -> None:
        """Write `config.yaml` again if it is gone, with the whole folder perhaps: without it nobody can go on there."""
        path = self.path / CONFIG_FILE
        if not path.exists():
            with _explained(path):
                atomic_write(path, self._config)

    def close(self) -> None:
        """Let go of the folder; another process may then take it."""
        self._rows.close()

    def mend(self, records: Iterable[StepRecord]) -> None:
        """Write again what is missing of the steps of these records, which are in order: their rows and tables."""
        rows = {}
        for record in records:
            if not self._table_path(record.step).is_file():
                self._write_table(record)
            rows[record.step] = record.row
        with _explained(self.path / METRICS_FILE):
            self._rows.add_missing(rows)

    def _set_aside_later_steps(self, step: int) -> None:
        """Before this process's first step: put away what an earlier start wrote of it and of later ones. Before every
        one: see that the folder is the one that was opened, and no new one that a log or checkpoint has made."""
        if not self._rows.is_there():
            raise RlvrError(f"{self.path} is not the folder that was opened; was it removed or moved meanwhile?")
        if not self._first_write:
            return
        with _explained(self.path / METRICS_FILE):
            rows = self._rows.from_step(step)
            tables = [
                self._table_path(number) for number in _steps_of(self.path / COMPLETIONS_FOLDER) if number >= step
            ]
            records = [record_path(self.path, number) for number in recorded_steps(self.path) if number >= step]
            if rows or tables or records:
                aside = _new_folder(self.path / SET_ASIDE_FOLDER)
                atomic_write(aside / METRICS_FILE, rows)
                for file in (*tables, *records):
                    file.rename(aside / file.name)
                self._rows.cut(rows)
        self._first_write = False

    def _table_path(self, step: int) -> Path:
        return self.path / COMPLETIONS_FOLDER / f"step-{step:06d}.parquet"


def _open_trail(path: Path) -> Trail:
    trail = Trail(path)
    trail.begin()
    return trail


def _with_tied_names(content: bytes, tied: Sequence[tuple[str, str]]) -> bytes:
    from safetensors.numpy import load, save  # what a learner trains is float32, which numpy knows

    tensors = load(content)
    whole: bytes = save(tensors | {name: tensors[stored] for name, stored in tied}, {"format": "pt"})
    return whole


def _choose_path(config: RunConfig) -> Path:
    """The configured folder, or a new `runs/RECIPE-TIME`, with a number behind it when two runs start in one second."""
    if config.run_dir is not None:
        _refuse_bytes(config.run_dir)
        return Path(config.run_dir).expanduser()
    base = Path("runs") / f"{plain_name(config.recipe)}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = base, 1
    with _explained(base):
        base.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()
                return path
            except FileExistsError:
                number += 1
                path = base.with_name(f"{base.name}-{number}")


def plain_name(name: str, max_chars: int = 64) -> str:
    """A name as a part of others: of files, and of labels in Ray, which are ASCII.

    Args:
        name: Any.
        max_chars: What is longer is cut.
    """
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:max_chars].strip(".-") or "run"


def _refuse_bytes(run_dir: str) -> None:
    try:
        run_dir.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"run_dir={run_dir!r} is no text in UTF-8; choose another run_dir") from None


def _refuse_foreign_content(path: Path) -> None:
    content = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    if [entry.name for entry in content] == [METRICS_FILE] and content[0].stat().st_size == 0:
        return  # of a run that starts just now, which then has it locked, or was killed while it did
    if content and not (path / CONFIG_FILE).is_file():
        raise ConfigError(f"run_dir={str(path)!r} is not empty and not a run's folder; choose another run_dir")
    if not (path / SUMMARY_FILE).is_file():
        return
    status = read_status(path)
    if status == "finished":
        raise ConfigError(f"run_dir={str(path)!r} holds a finished run; choose another run_dir")
    if status is None:  # not ours to throw away
        raise ConfigError(
            f"{path / SUMMARY_FILE} cannot be read: if the run is not finished, remove it to go on; or choose another "
            f"run_dir"
        )


def read_status(path: Path) -> str | None:
    """How the run in a folder ended: `finished`, `stopped` or `failed`; None where no summary says."""
    try:
        return str(json.loads((path / SUMMARY_FILE).read_bytes())["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _clear_leftovers(path: Path) -> None:
    """What a killed process left behind: temporary files, an adapter half way through its replacement, a summary."""
    for folder in (path, path / COMPLETIONS_FOLDER, path / RECORDS_FOLDER):
        for file in folder.glob(".*.tmp"):
            file.unlink()
    old = path / _OLD_ADAPTER
    if old.is_dir() and not (path / ADAPTER_FOLDER).exists():
        old.rename(path / ADAPTER_FOLDER)
    for folder in (old, path / _NEW_ADAPTER):
        shutil.rmtree(folder, ignore_errors=True)
    (path / SUMMARY_FILE).unlink(missing_ok=True)  # of a stopped run: it is going on


def _steps_of(folder: Path) -> list[int]:
    names = [path.stem.removeprefix("step-") for path in folder.glob("step-*.parquet")]
    return [int(name) for name in names if name.isdigit()]


def _new_folder(parent: Path) -> Path:
    """PARENT/1, PARENT/2 …"""
    parent.mkdir(exist_ok=True)
    for number in itertools.count(1):
        with suppress(FileExistsError):
            (parent / str(number)).mkdir()
            break
    return parent / str(number)


@contextmanager
def _explained(path: Path, wrong_place: type[RlvrError] = RlvrError) -> Iterator[None]:
    """Turn a file-system error into one sentence with the remedy.

    Args:
        wrong_place: raised where the place cannot be written to: a ConfigError only where it has just been chosen.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoRoomError(f"cannot write {path}: {reason}; free some space or choose another run_dir") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise wrong_place(f"cannot write {path}: {reason}; choose another run_dir") from error
        if error.errno == errno.ENOENT:
            raise RlvrError(f"cannot write {path}: its folder is gone; was it removed or moved meanwhile?") from error
        raise RlvrError(f"cannot write {path}: {reason}") from error
