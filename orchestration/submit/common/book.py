"""What was submitted from here: one small file for each job, so that `rlvr jobs` finds it again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from orchestration.errors import ConfigError, MachineError
from orchestration.settings.names import nearest
from orchestration.storage.atomic import atomic_write
from orchestration.storage.state import state_root


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRecord:
    """A submitted job."""

    name: str
    place: str
    """The backend's name: local, ray, sagemaker or hyperpod."""
    recipe: str
    submitted_at: str
    """UTC, as 2026-11-21T17:22:33Z."""
    reference: Mapping[str, str]
    """What the backend finds it by. Nothing secret."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The backend's section of the settings it was submitted with."""
    evaluate: str = ""
    """The command that measures the adapter from here."""


class JobBook:
    """The records in a folder, `<name>.json` each."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or state_root() / "jobs"

    @contextmanager
    def reserved(self, name: str) -> Iterator[None]:
        """Keep a name for a submission under way.

        Raises ConfigError when a job of that name was submitted before, or is being submitted by another process.
        """
        lock = FileLock(self._path(name).with_suffix(".lock"), blocking=False)
        with self._writable():
            try:
                lock.acquire()
            except Timeout:
                raise ConfigError(f"a job {name!r} is being submitted from here; choose another job.name") from None
        try:
            if self.knows(name):
                raise ConfigError(f"a job {name!r} was submitted before; choose another job.name")
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    def knows(self, name: str) -> bool:
        return self._path(name).exists()

    def write(self, record: JobRecord) -> None:
        """Raises MachineError when it cannot be written."""
        with self._writable():
            atomic_write(self._path(record.name), json.dumps(asdict(record), indent=2).encode())

    def forget(self, name: str) -> None:
        """What is known of a job that there is not."""
        self._path(name).unlink(missing_ok=True)

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise MachineError(
                f"{self._folder} cannot be written ({error}); set RLVR_STATE to another folder"
            ) from error

    def read(self, name: str) -> JobRecord:
        """Raises ConfigError when there is no such job, with the nearest name."""
        try:
            return JobRecord(**json.loads(self._path(name).read_bytes()))
        except FileNotFoundError:
            known = [record.name for record in self.all()]
            hint = nearest(name, known) or "; `rlvr jobs list` shows those there are"
            raise ConfigError(f"no job {name!r} was submitted from here{hint}") from None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{self._path(name)} is not a job's record ({error}); remove it") from error

    def all(self) -> list[JobRecord]:
        """All jobs, the newest first; files that are no records are passed over."""
        records = []
        for path in self._folder.glob("*.json"):
            try:
                records.append(JobRecord(**json.loads(path.read_bytes())))
            except (OSError, ValueError, TypeError):
                continue
        return sorted(records, key=lambda record: (record.submitted_at, record.name), reverse=True)

    def _path(self, name: str) -> Path:
        if not re.fullmatch(r"[\w-][\w.-]{0,62}", name):
            raise ConfigError(f"{name!r} is not a job's name")
        return self._folder / f"{name}.json"
