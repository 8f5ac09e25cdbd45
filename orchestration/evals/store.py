"""The folder of an evaluation: whole files only, so that one that was killed goes on.

evaluation.json           what was asked: of another, the folder is refused
answers/base-….json       the answers to one batch, written when all are judged
answers.parquet           all of them, one row an answer
results.json              the figures
results.txt               the same as a table
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from orchestration.errors import ConfigError, MachineError
from orchestration.evals.answers import Answer
from orchestration.storage.atomic import atomic_write

IDENTITY_FILE: Final = "evaluation.json"
ANSWERS_FOLDER: Final = "answers"
ANSWERS_FILE: Final = "answers.parquet"
RESULTS_FILE: Final = "results.json"
TABLE_FILE: Final = "results.txt"


class Store:
    """What an evaluation has so far: in its folder, or with `None` for as long as this process lives."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._held: dict[str, list[Answer]] = {}

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Take the folder for this evaluation, or go on in it.

        Args:
            identity: All that the answers depend on.

        Raises:
            ConfigError: It holds another one, or something else; what differs is named.
        """
        if self._folder is None:
            return
        path = self._folder / IDENTITY_FILE
        with _explained(self._folder):
            if path.is_file():
                if differing := [key for key, was in _read(path).items() if identity.get(key) != was]:
                    raise ConfigError(
                        f"{str(self._folder)!r} holds an evaluation with another {differing[0]}; choose another --out, "
                        f"or remove it"
                    )
                return
            if self._folder.is_dir() and any(one.name != ".lock" for one in self._folder.iterdir()):
                raise ConfigError(f"{str(self._folder)!r} holds no evaluation; choose another --out")
            (self._folder / ANSWERS_FOLDER).mkdir(parents=True, exist_ok=True)
            atomic_write(path, as_json(identity))

    def read(self, batch: str) -> list[Answer] | None:
        """The answers to a batch; None while there are none."""
        if batch in self._held:
            return self._held[batch]
        if self._folder is None or not (path := self._folder / ANSWERS_FOLDER / f"{batch}.json").is_file():
            return None
        with _explained(self._folder):
            self._held[batch] = [Answer.of(row) for row in _read(path)]
        return self._held[batch]

    def write(self, batch: str, answers: Sequence[Answer]) -> None:
        """Keep the answers to a batch.

        Args:
            batch: Its name, which the file gets.
            answers: In order; written whole or not at all.

        Raises:
            MachineError: The disk is full, or fails.
        """
        self._held[batch] = list(answers)
        if self._folder is not None:
            with _explained(self._folder):
                path = self._folder / ANSWERS_FOLDER / f"{batch}.json"
                atomic_write(path, as_json([answer.row() for answer in answers]))

    def end(self, answers: Sequence[Answer], results: Mapping[str, Any], table: str) -> None:
        """Write table, figures and answers.

        Raises:
            MachineError: The disk is full, or fails.
        """
        if self._folder is not None:
            with _explained(self._folder):
                atomic_write(self._folder / ANSWERS_FILE, parquet_of(answers))
                atomic_write(self._folder / TABLE_FILE, f"{table}\n".encode())
                atomic_write(self._folder / RESULTS_FILE, as_json(results))


@contextmanager
def locked(folder: Path | None) -> Iterator[Store]:
    """The store, kept from other processes for the length of the block.

    Args:
        folder: None: a temporary one, which goes with the block.

    Raises:
        ConfigError: Another process has it.
    """
    if folder is None:
        yield Store(None)
        return
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(f"another process evaluates into {str(folder)!r}; choose another --out") from error
    try:
        yield Store(folder)
    finally:
        lock.release()


def read_answers(folder: Path) -> list[Answer]:
    """All answers of a finished evaluation.

    Raises:
        ConfigError: They cannot be read.
    """
    with _explained(folder):
        return [Answer.of(row) for path in sorted((folder / ANSWERS_FOLDER).glob("*.json")) for row in _read(path)]


def as_json(value: Any) -> bytes:
    """One text for equal values."""
    return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def parquet_of(answers: Sequence[Answer]) -> bytes:
    """One row an answer; a column `score_JUDGE` for each judge."""
    import pyarrow
    from pyarrow import BufferOutputStream, parquet

    judges = list(dict.fromkeys(judge for answer in answers for judge in answer.scores))
    rows = [
        {**{key: value for key, value in answer.row().items() if key != "scores"}}
        | {f"score_{judge}": answer.scores.get(judge) for judge in judges}
        for answer in answers
    ]
    sink = BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise ConfigError(f"cannot write into {str(folder)!r}: {error.strerror}; choose another --out") from error
    except OSError as error:
        raise MachineError(
            f"cannot write into {str(folder)!r}: {error.strerror}; make room, or choose another --out"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{str(folder)!r} cannot be read: {error}; remove it, or choose another --out") from error
