"""Folders made once and kept: built under a lock beside their place, renamed into it, and checked when used again.

A ready folder holds `checksums.json`: size, modification time and SHA-256 of each of its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from orchestration.errors import DataError

MANIFEST = "checksums.json"
LOCK_TIMEOUT_S = 900.0
_LOCK_POLL_S = 0.2

Progress = Callable[[str, float], None]
"""Called with what is being done and the share done, 0 to 1."""


def ignore_progress(message: str, share: float) -> None:
    """A `Progress` that shows nothing."""


def cache_root() -> Path:
    """`$RLVR_CACHE`, or `~/.cache/rlvr`."""
    return Path(os.environ.get("RLVR_CACHE") or Path.home() / ".cache" / "rlvr")


def settings_hash(*parts: object) -> str:
    """Twelve hexadecimal digits that differ when any part's text does.

    Args:
        parts: Anything whose `str` says all that matters.
    """
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def cached_folder(folder: Path, build: Callable[[Path], None], *, progress: Progress = ignore_progress) -> Path:
    """Return `folder`, complete: built now if it is missing or broken, otherwise as it lies there.

    Two processes that want the same folder do not build it twice: one waits. A build that dies leaves no half folder.

    Args:
        folder: its final place; the parent is made if need be.
        build: fills the empty folder it is given.
        progress: told when it waits for another process and when a broken folder is made again.

    Raises:
        DataError: the cache cannot be written, or another process has held the lock for `LOCK_TIMEOUT_S`.
    """
    if is_intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.parent / f".{folder.name}.lock", progress):
            if not is_intact(folder):
                _rebuild(folder, build, progress)
    except OSError as error:
        raise DataError(
            f"cannot prepare {folder}: {error.strerror or error}; set RLVR_CACHE to a folder with room to write"
        ) from error
    return folder


def is_intact(folder: Path) -> bool:
    """Whether the folder holds every file of its manifest unchanged.

    Sizes and modification times are compared; a file with another time (a copied cache) is read and its SHA-256
    compared. Does not cover: bytes that rotted on the disk without another time.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in manifest["files"].items():
            state = (folder / name).stat()
            if state.st_size != entry["size"]:
                return False
            if state.st_mtime_ns != entry["mtime_ns"] and _sha256(folder / name) != entry["sha256"]:
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return True


def _rebuild(folder: Path, build: Callable[[Path], None], progress: Progress) -> None:
    if folder.exists():
        progress(f"{folder} is incomplete or damaged: making it again", 0.0)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        beside.chmod(0o755)
        build(beside)
        files = sorted(path for path in beside.rglob("*") if path.is_file())
        entries = {str(path.relative_to(beside)): _entry(path) for path in files}
        (beside / MANIFEST).write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _entry(path: Path) -> dict[str, int | str]:
    with path.open("rb+") as file:
        os.fsync(file.fileno())  # a power cut must not leave a manifest that vouches for lost bytes
    path.chmod(0o644)
    state = path.stat()
    return {"size": state.st_size, "mtime_ns": state.st_mtime_ns, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    """Hold the lock of a folder; the kernel drops it when its holder dies, so none is ever stale."""
    lock = FileLock(path, poll_interval=_LOCK_POLL_S)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        progress("waiting for another process that prepares the same model", 0.0)
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout:
            raise DataError(
                f"another process has held {path} for {LOCK_TIMEOUT_S:.0f} s; end it, or set RLVR_CACHE to another "
                f"folder"
            ) from None
    try:
        yield
    finally:
        lock.release()
