"""A SQLite log read from elsewhere: whether it is whole, and what was decided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from reward_service.audit.decisions import decisions, describe
from reward_service.audit.records import read_key
from reward_service.audit.store import AuditStore
from reward_service.audit.verify import Verification, verify


def verify_log(path: Path, *, hmac_key_file: Path | None = None) -> Verification:
    """Reads the whole log and computes its chain anew.

    Args:
        path: Of the SQLite file.
        hmac_key_file: Of a log that was kept with a key.

    Raises:
        AuditError: It is no audit log, or its key is wrong.
    """
    with closing(AuditStore(str(path), key=read_key(hmac_key_file))) as store:
        return verify(store)


def all_decisions(path: Path, *, hmac_key_file: Path | None = None) -> Iterator[dict[str, Any]]:
    """The decisions in the order in which they were made, as `describe` makes them readable; records that are written
    meanwhile are not among them.

    Args:
        path: Of the SQLite file.
        hmac_key_file: Of a log that was kept with a key.

    Raises:
        AuditError: There is no such log, or a record cannot be read.
    """
    with closing(AuditStore(str(path), key=read_key(hmac_key_file))) as store, store.snapshot() as snapshot:
        for record in snapshot.records():
            yield from map(describe, decisions(record))


def find_decision(path: Path, run_id: str, item_id: str) -> dict[str, Any] | None:
    """What was decided of one item.

    Args:
        path: Of the SQLite file.
        run_id: As the run was known to the service.
        item_id: As the item was called in it.

    Returns:
        The newest decision, as `describe` makes it readable; None where there is none.
    """
    with closing(AuditStore(str(path))) as store:
        found = store.explain(run_id, item_id, limit=1)
    return describe(found[0]) if found else None
