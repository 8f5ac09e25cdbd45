"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def atomic_write(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a whole file beside its place, flush it to the disk and rename it: readers see the old or the new file.

    Args:
        private: only the file's owner may read it, at no time anybody else.

    Raises:
        OSError: as the file system has it; the old file, if any, is untouched and nothing is left beside it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb", opener=_private if private else None) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
