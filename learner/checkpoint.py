"""Checkpoints on disk: a folder that appears whole or not at all, and is recognised when it is damaged later.

    checkpoints/step-000012/    one folder a step, the newest few are kept
        manifest.json           size and SHA-256 of every other file
        …                       the learner's files and the caller's

A folder is written beside its place, every file and all folders around it flushed to the disk, and renamed. A crash
leaves the checkpoints before it, and hidden folders which `clear_leftovers` and the next write put away. No torch here.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from learner.errors import DiskFullError, LearnerError

MANIFEST_NAME = "manifest.json"

_STEP = re.compile(r"step-(\d{6,})")
_PARTIAL, _REPLACED, _REMOVED = ".partial", ".replaced", ".removed"
_SAMPLE = 2**16
"""Bytes at each end of a file of weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundCheckpoint:
    """What lies in a folder of checkpoints."""

    newest: Path | None
    """The newest whole one."""
    damaged: tuple[str, ...]
    """What is wrong with the newer ones, a sentence each."""


def checkpoint_name(step: int) -> str:
    """Of the folder of a step's checkpoint."""
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after.

    Raises:
        LearnerError: It is not called as `checkpoint_name` calls them.
    """
    match = _STEP.fullmatch(checkpoint.name)
    if match is None:
        raise LearnerError(f"{checkpoint} is not a checkpoint's folder: {checkpoint_name(12)} would be one")
    return int(match[1])


def write_checkpoint(root: Path, step: int, files: Iterable[tuple[str, bytes]], *, keep: int) -> Path:
    """Writes a step's checkpoint into `root`, replacing an earlier one of the same step, and its folder.

    Then, and only then, all but the `keep` newest whole ones are removed, and those of later steps: a run that went
    back has gone another way since.

    Args:
        root: Folder of the run's checkpoints; made where it is not there.
        step: Batches learned from.
        files: (name, content); may be a generator, of which one file is held at a time.
        keep: Checkpoints that stay, this one included.

    Returns:
        The checkpoint's folder.

    Raises:
        LearnerError: It cannot be written; nothing is left of it, and the older ones are untouched.
    """
    final = root / checkpoint_name(step)
    partial = _hidden(final, _PARTIAL)
    with _explained(final):
        _make_folder(root)
        clear_leftovers(root)
        try:
            partial.mkdir()
            entries = {}
            for name, content in files:
                if name in entries or name == MANIFEST_NAME or Path(name).name != name:
                    raise ValueError(f"{name!r} is taken, or not a plain file name")
                _write(partial / name, content)
                entries[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            _write(partial / MANIFEST_NAME, json.dumps({"step": step, "files": entries}, indent=2).encode())
            _flush_folder(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        # POSIX cannot swap folders in one call; between these renames only the hidden one exists, and
        # `clear_leftovers` puts that back.
        if final.exists():
            final.rename(_hidden(final, _REPLACED))
        partial.rename(final)
        _flush_folder(root)
        clear_leftovers(root)
        _remove_all_but(root, step, keep)
    return final


def find_checkpoint(root: Path) -> FoundCheckpoint:
    """The newest whole checkpoint in `root`; reads every byte of it and of the damaged ones.

    Args:
        root: The folder of checkpoints; may be missing.
    """
    damaged = []
    for step in sorted(_steps(root), reverse=True):
        try:
            check_checkpoint(root / checkpoint_name(step))
        except LearnerError as error:
            damaged.append(str(error))
        else:
            return FoundCheckpoint(newest=root / checkpoint_name(step), damaged=tuple(damaged))
    return FoundCheckpoint(newest=None, damaged=tuple(damaged))


def checkpoint_steps(root: Path) -> list[int]:
    """Steps that have a checkpoint in `root`, in order; not whether it is whole."""
    return sorted(_steps(root))


def check_checkpoint(folder: Path) -> None:
    """Reads every byte of the folder.

    Raises:
        LearnerError: It does not hold what was once written to it; the message says what is wrong.
    """
    wrong = _what_is_wrong(folder, checksums=True)
    if wrong is not None:
        raise LearnerError(f"{folder} is not a whole checkpoint: {wrong}")


def weights_fingerprint(model: Path) -> str:
    """Of the weights' files, by name, size and their first and last bytes: cheap, and any training shows in it.

    Args:
        model: Folder of a base model.

    Returns:
        SHA-256, hexadecimal.

    Raises:
        LearnerError: The folder holds no weights.
    """
    digest = hashlib.sha256()
    paths = sorted([*model.glob("*.safetensors"), *model.glob("*.bin")])
    if not paths:
        raise LearnerError(f"{model} holds no weights that a checkpoint could name: *.safetensors or *.bin")
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(0, size - _SAMPLE))
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def clear_leftovers(root: Path) -> None:
    """Puts away what a killed process left in `root`. Only for its one writer."""
    for old in root.glob(f".step-*{_REPLACED}"):
        final = root / old.name.removeprefix(".").removesuffix(_REPLACED)
        if final.exists():
            shutil.rmtree(old)
        else:
            old.rename(final)
    for suffix in (_PARTIAL, _REMOVED):
        for folder in root.glob(f".step-*{suffix}"):
            shutil.rmtree(folder)


def _what_is_wrong(folder: Path, *, checksums: bool) -> str | None:
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_bytes())
        entries = [(str(name), int(e["bytes"]), str(e["sha256"])) for name, e in manifest["files"].items()]
    except FileNotFoundError:
        return f"{MANIFEST_NAME} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{MANIFEST_NAME} cannot be read ({error})"
    for name, size, digest in entries:
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if checksums and _digest(folder / name) != digest:
                return f"{name} is damaged, its checksum is another"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
    return None


def _remove_all_but(root: Path, step: int, keep: int) -> None:
    older = [other for other in sorted(_steps(root), reverse=True) if other < step]
    whole = [other for other in older if _what_is_wrong(root / checkpoint_name(other), checksums=False) is None]
    kept = {step, *whole[: keep - 1]}
    for other in _steps(root):
        if other not in kept:
            folder = root / checkpoint_name(other)
            folder.rename(_hidden(folder, _REMOVED))  # at once: nobody meets one half removed
    clear_leftovers(root)


def _steps(root: Path) -> list[int]:
    if not root.is_dir():
        return []
    matches = [_STEP.fullmatch(entry.name) for entry in root.iterdir() if entry.is_dir()]
    return [int(match[1]) for match in matches if match is not None]


def _hidden(final: Path, suffix: str) -> Path:
    return final.with_name(f".{final.name}{suffix}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Makes it, and its parents, so that they last: each new name is flushed with the folder that it stands in."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _flush_folder(folder.parent)


def _flush_folder(folder: Path) -> None:
    """Makes the names in it last: on most file systems a file's own flush does not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space" if full else "look at the folder's permissions and its disk"
        raise (DiskFullError if full else LearnerError)(
            f"cannot write checkpoint {final}: {error.strerror or error}; {remedy}. The older ones are untouched"
        ) from error
