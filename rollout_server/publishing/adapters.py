"""Adapter versions on a node: where their files lie, and who still uses them. No vLLM here.

The files of version N of a run lie in `<root>/rlvr-<run>/v<N>/`, written once for all workers of the node. Workers
agree through file locks (`flock`), which the kernel drops with the process however it ends:

- `<root>/rlvr-<run>.lock` is held, shared, while a worker of the run lives: a folder whose lock is free is left over;
- `<root>/rlvr-<run>/v<N>.lock` is held, shared, by each worker that serves the version: the last one to let go deletes
  the files;
- `<root>/rlvr-<run>/guard.lock` is held, exclusive, by whoever writes or deletes a version.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rollout_server.errors import AdapterCorruptError
from rollout_server.types import AdapterPayload, AdapterVersion

_PREFIX = "rlvr-"
_CHUNK = 1 << 20
"""Bytes read at once: they stay in the processor's cache."""

Files = tuple[tuple[str, bytes | memoryview], ...]
"""(name, content)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedAdapter:
    """A version whose files are on this node."""

    version: AdapterVersion
    write_ms: float
    """0 when another worker of the node had written them."""


class AdapterStore:
    """The adapter files of one run on one node, as one worker sees them.

    Args:
        root_dir: A folder, best on tmpfs.
        run_id: Tells this run's folder from those of others.

    Raises:
        OSError: `root_dir` is not there or cannot be written to.
    """

    def __init__(self, root_dir: str, run_id: str) -> None:
        root = Path(root_dir)
        remove_leftovers(root)
        self.folder = root / f"{_PREFIX}{run_id}"
        self._run_lock = _FileLock(root / f"{_PREFIX}{run_id}.lock")
        self._run_lock.acquire_shared()
        self.folder.mkdir(exist_ok=True)
        self._guard = _FileLock(self.folder / "guard.lock")
        self._version_locks: dict[int, _FileLock] = {}

    def place(self, payload: AdapterPayload) -> PlacedAdapter:
        """Make sure that the payload's files lie on this node, and hold them there until `drop`. What another worker
        has written is held against the payload; what was written here is, by `check`, when the caller likes.

        Blocks while another worker writes or deletes a version.

        Raises:
            AdapterCorruptError: What lies there is not what the payload says.
        """
        target = self.folder / f"v{payload.version}"
        with self._guard.held():
            write_ms = 0.0
            if not target.exists():
                started = time.perf_counter()
                try:
                    _write_folder(target, payload.files)
                except OSError as error:
                    error.filename = error.filename or str(target)  # a write, unlike an open, does not say where
                    raise
                write_ms = (time.perf_counter() - started) * 1e3
            else:
                self.check(payload)
            if payload.version not in self._version_locks:
                lock = self._version_locks[payload.version] = _FileLock(self._lock_path(payload.version))
                lock.acquire_shared()
        key = secrets.token_hex(8)
        version = AdapterVersion(number=payload.version, path=str(target), key=key, num_bytes=payload.num_bytes)
        return PlacedAdapter(version=version, write_ms=write_ms)

    def check(self, payload: AdapterPayload) -> None:
        """Hold the files that lie here under a payload's number against it, byte for byte.

        Raises:
            AdapterCorruptError: They are others.
        """
        folder = self.folder / f"v{payload.version}"
        if (wrong := _first_difference(folder, payload.files)) is not None:
            raise AdapterCorruptError(
                f"adapter version {payload.version} in {folder} is not what the learner sent, by its {wrong}: "
                f"remove the folder, or give the run another id"
            )

    def drop(self, number: int) -> None:
        """Let go of a version; its files are deleted if no other worker of the node holds them."""
        with self._guard.held():
            lock = self._version_locks.pop(number)
            if lock.try_exclusive():
                shutil.rmtree(self.folder / f"v{number}", ignore_errors=True)
                lock.unlink()
            lock.release()

    def close(self) -> None:
        """Let go of everything; the last worker of the node removes the run's folder."""
        for number in list(self._version_locks):
            self.drop(number)
        if self._run_lock.try_exclusive():
            shutil.rmtree(self.folder, ignore_errors=True)
            self._run_lock.unlink()
        self._run_lock.release()

    def _lock_path(self, number: int) -> Path:
        return self.folder / f"v{number}.lock"


def remove_leftovers(root: Path) -> list[str]:
    """Delete the folders of runs of which no process on this node is left.

    A folder without a lock file beside it is not one of ours, whatever its name, and stays; so does another user's.

    Args:
        root: Where runs have their folders, as `adapter_dir` or /dev/shm.

    Returns:
        The names of those deleted.
    """
    removed = []
    for lock_path in sorted(root.glob(f"{_PREFIX}*.lock")):
        folder = lock_path.with_suffix("")
        lock = _FileLock(lock_path)
        try:
            if lock.try_exclusive():
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink()
                removed.append(folder.name)
        except PermissionError:
            continue  # another user's run
        finally:
            lock.release()
    return removed


@dataclass(slots=True)
class AdapterTable:
    """Which versions one worker serves, and how many requests each of them has. Pure bookkeeping.

    Version 0 is the base model: always there, never counted among the live ones.
    """

    _versions: dict[int, AdapterVersion] = field(default_factory=dict)
    _requests: dict[int, int] = field(default_factory=dict)
    _current: int = 0

    @property
    def current(self) -> int:
        """The version that new requests get."""
        return self._current

    @property
    def live(self) -> tuple[int, ...]:
        """Versions that occupy a place in the engine, oldest first."""
        return tuple(self._versions)

    def version(self, number: int) -> AdapterVersion | None:
        """The adapter of a live version; None for the base."""
        return None if number == 0 else self._versions[number]

    def add(self, version: AdapterVersion) -> None:
        """Take a version in, without serving it yet.

        Raises:
            ValueError: It is live already, or has the number 0, the base model's.
        """
        if version.number < 1 or version.number in self._versions:
            raise ValueError(f"adapter version {version.number} cannot be added to live versions {list(self.live)}")
        self._versions[version.number] = version

    def make_current(self, number: int) -> None:
        """Give this version to new requests; those under way keep theirs.

        Raises:
            ValueError: It is not live.
        """
        if number not in self._versions:
            raise ValueError(f"adapter version {number} is not among the live ones {list(self.live)}")
        self._current = number

    def acquire(self) -> int:
        """Begin a request on the current version; returns the version's number.

        Returns:
            To be released once, when the request has ended.
        """
        self._requests[self._current] = self._requests.get(self._current, 0) + 1
        return self._current

    def release(self, number: int) -> None:
        """End a request."""
        remaining = self._requests[number] - 1
        if remaining:
            self._requests[number] = remaining
        else:
            del self._requests[number]

    @property
    def num_all_requests(self) -> int:
        """Requests under way, whatever their version."""
        return sum(self._requests.values())

    def num_requests(self, number: int) -> int:
        """Requests under way on a version."""
        return self._requests.get(number, 0)

    def idle(self) -> tuple[AdapterVersion, ...]:
        """Versions that can go: not current, and without requests."""
        return tuple(
            version
            for number, version in self._versions.items()
            if number != self._current and number not in self._requests
        )

    def discard(self, number: int) -> None:
        """Forget a version.

        Args:
            number: Neither current nor in use.

        Raises:
            ValueError: It is one of both.
        """
        if number == self._current or number in self._requests:
            raise ValueError(f"adapter version {number} is in use")
        del self._versions[number]


def _write_folder(target: Path, files: Files) -> None:
    """Write beside and rename: whoever sees the folder sees all of it."""
    beside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, content in files:
            if Path(name).name != name:
                raise ValueError(f"adapter file name {name!r} is not a plain file name")
            (beside / name).write_bytes(content)
        beside.rename(target)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _first_difference(folder: Path, files: Files) -> str | None:
    """The name of a file in which a folder differs from what was sent; None if they are the same, byte for byte."""
    sent = dict(files)
    names = sent.keys() | {path.name for path in folder.iterdir()}
    return next((name for name in sorted(names) if not _holds(folder / name, sent.get(name))), None)


def _holds(path: Path, content: bytes | memoryview | None) -> bool:
    if content is None or not path.is_file() or path.stat().st_size != len(content):
        return False
    # One buffer, so that no memory is new. A bytearray compares all at once, a view of bytes each by itself.
    sent, read = memoryview(content), bytearray(min(_CHUNK, len(content)))
    with path.open("rb", buffering=0) as file:
        for at in range(0, len(content), _CHUNK):
            wanted = sent[at : at + _CHUNK]
            del read[len(wanted) :]
            if file.readinto(read) != len(wanted) or read != wanted:
                return False
    return True


class _FileLock:
    """A `flock` on a file of its own, created when needed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire_exclusive(self) -> None:
        self._acquire(fcntl.LOCK_EX)

    def acquire_shared(self) -> None:
        self._acquire(fcntl.LOCK_SH)

    def try_exclusive(self) -> bool:
        """Take the lock for ourselves alone, if nobody else has it. If this fails, a shared lock is lost as well."""
        try:
            self._acquire(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock exclusively for a block."""
        self.acquire_exclusive()
        try:
            yield
        finally:
            self.release()

    def unlink(self) -> None:
        """Remove the file; only while holding the lock exclusively."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _acquire(self, mode: int) -> None:
        """Lock the file that the path names now: another process may remove it between opening and locking."""
        while True:
            if self._descriptor is None:
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, mode)
            try:
                named = os.stat(self._path)
            except FileNotFoundError:
                named = None
            if named is not None and os.path.samestat(named, os.fstat(self._descriptor)):
                return
            self.release()
