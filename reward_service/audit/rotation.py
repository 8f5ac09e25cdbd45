"""Rotation and retention: the older part of a log goes to a file beside it, or away, and the chain stays whole.

Records are copied into a SQLite file with the same tables, which can be verified by itself, and then, in one
transaction with a row of `audit_segments` that names the file and its last record, deleted from the log. `verify` walks
through the files and the log as one chain. What retention removed is a row without a file: the chain goes on behind its
last record's hash. Every row has a seal, keyed where the log is, so that without the key nobody can cut the log so.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from reward_service.audit.records import Segment
from reward_service.audit.settings import AuditSettings
from reward_service.audit.store import AuditStore
from reward_service.errors import AuditError

logger = logging.getLogger(__name__)

_DAY_US: Final = 86_400 * 10**6


def maintain(settings: AuditSettings, key: bytes | None) -> None:
    """Rotates and removes what is due; what fails is logged, and tried again the next time."""
    try:
        with closing(AuditStore.of(settings, key)) as store:
            if settings.keep_days is not None:
                remove_old(store, time.time_ns() // 1000 - round(settings.keep_days * _DAY_US))
            if settings.rotate_mb is not None and store.size_bytes() > settings.rotate_mb * 2**20:
                rotate(store)
    except (AuditError, OSError) as error:
        logger.error("the audit log was not rotated: %s", error)


def rotate(store: AuditStore) -> Path | None:
    """Moves the older half of the records to a file of their own; None if there is nothing to move."""
    with store.snapshot() as snapshot:
        segments = snapshot.segments()
        first = segments[-1].last_seq + 1 if segments else 1
        head = snapshot.heads()[0][0]
        if (last := snapshot.record(first + (head.seq - first) // 2)) is None:
            return None
        path = store.archive / f"{store.stem}.{first:012}-{last['seq']:012}.sqlite3"
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=store.archive)
        os.close(descriptor)
        try:
            with closing(AuditStore(name, key=store.key)) as copy:
                copy.create()
                copy.fill(snapshot.records(until=last["seq"]), before=segments[-1] if segments else None)
            _sync(Path(name))
            segment = Segment.of(first, last, path.name, store.key)
            store.cut(segment, publish=lambda: os.replace(name, path))
        finally:
            for left in store.archive.glob(f"{Path(name).name}*"):
                left.unlink()
    return path


def remove_old(store: AuditStore, before_us: int) -> None:
    """Removes files, and records of the log, whose newest record is older than that time."""
    with store.snapshot() as snapshot:
        segments = snapshot.segments()
        last = snapshot.last_before(before_us)
    now_us = time.time_ns() // 1000
    for segment in segments:
        if segment.file and segment.last_time_us < before_us:
            (store.archive / segment.file).unlink(missing_ok=True)
            store.replace_segment(segment.removed(now_us, store.key))
    if last is not None:
        first = segments[-1].last_seq + 1 if segments else 1
        store.cut(Segment.of(first, last, "", store.key).removed(now_us, store.key), publish=lambda: None)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
