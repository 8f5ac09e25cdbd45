"""The trail of a run: a line for its start, each step and its end, each with the digests of what was written then.

    {"prev": …, "entry": {"kind": "step", "step": 12, "files": {"records/step-000012.record": …}, …}, "hash": …}

`hash` is the SHA-256 of `prev`, a newline and the entry as it stands in the line; `prev` is the `hash` of the line
before, and of the first one 64 zeros. So no line can be changed, dropped or put in without all after it. Who can write
to the folder can write all of them anew: the last hash, kept elsewhere, shows that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orchestration.run.ledger.names import (
    ADAPTER_FOLDER,
    AUDIT_FILE,
    CONFIG_FILE,
    REPORT_FILE,
    RESCORED_FOLDER,
    TRAIL_FILE,
)

GENESIS: Final = "0" * 64
_NOT_SEALED: Final = (TRAIL_FILE, REPORT_FILE)
"""The trail itself, and what every `rlvr report` writes anew from the rest."""
_CHUNK: Final = 2**20


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a trail; `wrong` says what is wrong with it."""

    number: int
    entry: Mapping[str, Any]
    hash: str
    wrong: str = ""


class Trail:
    """An open trail; this process is its only writer."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._path = run_dir / TRAIL_FILE
        lines = list(read_trail(run_dir))
        self.head = lines[-1].hash if lines else GENESIS
        """Hash of the last line."""

    def begin(self) -> None:
        """A start, with its settings."""
        self._append(
            {
                "kind": "begin",
                "run_id": self._run_dir.name,
                "files": digests(self._run_dir, [self._run_dir / CONFIG_FILE]),
            }
        )

    def step(self, step: int, *, files: Sequence[Path], row: bytes | None, adapter: str) -> None:
        """A step that is written.

        Args:
            files: of this step, to be digested; those that are not there are left out.
            row: its line of the metrics; None: not written.
            adapter: SHA-256 of the tensors that were published, as in the record.
        """
        folder = self._run_dir / ADAPTER_FOLDER
        written = [*(file for file in files if file.is_file()), *sorted(folder.glob("*"))]
        entry = {"kind": "step", "step": step, "adapter": adapter, "files": digests(self._run_dir, written)}
        if row is not None:
            entry["row"] = hashlib.sha256(row).hexdigest()
        self._append(entry)

    def end(self) -> str:
        """Nothing of the run is written any more: every file of the folder is digested. Returns the head."""
        self._append({"kind": "end", "files": digests(self._run_dir, sealed_files(self._run_dir))})
        return self.head

    def _append(self, entry: Mapping[str, Any]) -> None:
        text = json.dumps(entry, separators=(",", ":"))
        own = chained(self.head, text)
        with self._path.open("a+b") as file:
            _cut_half_line(file)
            file.write(f'{{"prev":"{self.head}","entry":{text},"hash":"{own}"}}\n'.encode())
        self.head = own


def read_trail(run_dir: Path) -> Iterator[Line]:
    """The lines there are; a last one without its end is still being written, and passed over."""
    path = run_dir / TRAIL_FILE
    before = GENESIS
    if not path.is_file():
        return
    for number, content in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        line = _read_line(number, content, before)
        before = line.hash
        yield line


def _read_line(number: int, content: bytes, before: str) -> Line:
    start, middle, end = b'{"prev":"', b'","entry":', b',"hash":"'
    prev = content[len(start) : len(start) + 64]
    entry = content[len(start) + 64 + len(middle) : -len(end) - 64 - 2]
    own = content[-66:-2].decode("ascii", "replace")
    whole = start + prev + middle + entry + end + content[-66:]
    try:
        read = json.loads(content)["entry"]
        text = entry.decode()
    except (ValueError, KeyError, TypeError):
        return Line(number, {}, own, f"line {number} is no line of a trail")
    if whole != content or not content.endswith(b'"}') or chained(prev.decode("ascii", "replace"), text) != own:
        return Line(number, read, own, f"line {number} was changed: it does not have its hash")
    if prev.decode("ascii", "replace") != before:
        return Line(number, read, own, f"line {number} does not follow the line before it; one of the two was changed")
    return Line(number, read, own)


def chained(before: str, entry: str) -> str:
    """The hash of a line."""
    return hashlib.sha256(f"{before}\n{entry}".encode("utf-8", "surrogateescape")).hexdigest()


def sealed_files(run_dir: Path) -> list[Path]:
    """What the end of a run seals: all files of its folder but the trail, the page and results of `rlvr rescore`."""
    files = (path for path in run_dir.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(path for path in files if _is_sealed(path.relative_to(run_dir)))


def _is_sealed(path: Path) -> bool:
    return str(path) not in _NOT_SEALED and path.parts[0] != RESCORED_FOLDER and path.name not in _OF_READERS


_OF_READERS: Final = (f"{AUDIT_FILE}-wal", f"{AUDIT_FILE}-shm")
"""SQLite makes them for whoever reads, and removes them again."""


def digests(run_dir: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 by path in the folder."""
    return {path.relative_to(run_dir).as_posix(): file_digest(path) for path in files}


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cut_half_line(file: Any) -> None:
    """Of a process that was killed while it wrote."""
    end = file.seek(0, 2)
    file.seek(max(0, end - _CHUNK))
    tail = file.read()
    if tail and not tail.endswith(b"\n"):
        file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
