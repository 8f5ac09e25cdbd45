"""Rotation and retention leave one chain, and nobody can use them to take something out unseen."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from pydantic import ValidationError

from reward_service.audit.handle import AuditHandle
from reward_service.audit.records import Segment
from reward_service.audit.rotation import maintain, remove_old, rotate
from reward_service.audit.settings import AuditSettings
from reward_service.audit.store import AuditStore
from reward_service.audit.verify import verify
from reward_service.errors import AuditError
from tests.reward_service.audit.audit_cases import KEY, batch, recorded
from tests.reward_service.audit.test_audit import database, manipulate, postgres  # noqa: F401
from tests.waiting import until_async

START_US = 1_700_000_000_000_000


def filled(where: str, folder: Path, key: bytes | None = None) -> AuditStore:
    """A log of ten requests, of two records each, a microsecond apart."""
    store = AuditStore(where, key=key, archive=folder)
    store.create()
    for number in range(10):
        store.append(recorded(batch(number), batch(number)), session="s", messages=number + 1)
    return store


def count(store: AuditStore) -> int:
    with store.snapshot() as snapshot:
        return len(list(snapshot.records()))


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "keyed"])
def test_a_rotated_log_is_one_chain(database: str, tmp_path: Path, key: bytes | None) -> None:  # noqa: F811
    with closing(filled(database, tmp_path, key)) as store:
        before = verify(store)
        first, second = rotate(store), rotate(store)
        assert first is not None
        assert second is not None
        assert count(store) == 5
        assert sorted(tmp_path.glob("*-*.sqlite3")) == [first, second]
        assert verify(store, expected=before.head) == before
        store.create()
        store.append(recorded(batch(10), batch(10)), session="s", messages=11)
        assert (found := verify(store)).findings == ()
        assert found.num_records == 22
        for path in (first, second):  # each by itself
            with closing(AuditStore(str(path), key=key)) as moved:
                assert verify(moved).findings == ()


def test_what_is_old_goes_and_the_chain_stays(database: str, tmp_path: Path) -> None:  # noqa: F811
    with closing(filled(database, tmp_path)) as store:
        path = rotate(store)
        assert path is not None
        kept = verify(store).head
        remove_old(store, START_US + 4)
        assert path.exists()  # its last record is of request 4
        remove_old(store, START_US + 7)
        assert not path.exists()
        assert count(store) == 6
        found = verify(store, expected=kept)
        assert (found.findings, found.num_records, found.num_absent) == ((), 6, 14)
        remove_old(store, START_US + 100)
        assert (count(store), verify(store).findings) == (0, ())
        store.create()
        store.append(recorded(batch(10), batch(10)), session="s", messages=11)
        assert verify(store).findings == ()


def test_what_is_taken_out_otherwise_is_found(tmp_path: Path) -> None:
    where = str(tmp_path / "a.sqlite3")
    with closing(filled(where, tmp_path, KEY)) as store:
        path = rotate(store)
        assert path is not None
        manipulate(str(path), "UPDATE audit_records SET caller = 'bob' WHERE seq = 3")
        (finding,) = verify(store).findings
        assert finding.startswith("record 3: changed")
        manipulate(str(path), "DELETE FROM audit_records WHERE seq = 10")
        assert "record 10: missing at the end of the file" in verify(store).findings[-1]
        path.unlink()
        assert verify(store).findings == (f"records 1 to 10: missing with the file {path}",)
        manipulate(where, "UPDATE audit_segments SET file = '', removed_us = 1")
        assert verify(store).findings == ("the segment up to record 10: changed; it does not have its seal",)
        manipulate(where, "DROP TABLE audit_segments")
        assert verify(store).findings == ("records 1 to 10: missing",)


def test_a_cut_by_another_writer_is_noticed(tmp_path: Path) -> None:
    with closing(filled(str(tmp_path / "a.sqlite3"), tmp_path)) as store:
        with store.snapshot() as snapshot:
            row = snapshot.record(4)
        assert row is not None
        rotate(store)
        with pytest.raises(AuditError, match="rotated by another writer"):
            store.cut(Segment.of(1, row, "", None), publish=lambda: None)
        assert verify(store).findings == ()


async def test_the_writer_rotates_while_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = AuditSettings(database=str(tmp_path / "audit.sqlite3"), rotate_mb=0.2, flush_s=0.05, keep_text=True)
    handle = await AuditHandle.start(settings, service_version="1")
    number = 0

    def has_rotated() -> bool:
        nonlocal number
        handle.offer(batch(number, num_items=20))
        number += 1
        return bool(list(tmp_path.glob("*-*.sqlite3")))

    await until_async(has_rotated, 60)
    await handle.close()
    with closing(AuditStore(settings.database)) as store:
        found = verify(store)
        assert (found.findings, found.num_decisions) == ((), 20 * number)
        assert store.size_bytes() < 10**7


async def test_the_writer_removes_what_is_old(tmp_path: Path) -> None:
    settings = AuditSettings(database=str(tmp_path / "audit.sqlite3"), keep_days=1.0, flush_s=0.05)
    handle = await AuditHandle.start(settings, service_version="1")
    handle.offer(batch(0))  # of 2023
    handle.offer(msgspec.structs.replace(batch(1), time_us=time.time_ns() // 1000))
    await handle.flush(10)
    await handle.close()
    maintain(settings, None)
    with closing(AuditStore(settings.database)) as store:
        found = verify(store)
        assert (found.findings, found.num_records, found.num_absent) == ((), 1, 1)


def test_files_need_a_place() -> None:
    with pytest.raises(ValidationError, match="archive_folder"):
        AuditSettings(database="postgresql+psycopg://u@h/d", rotate_mb=1)
    AuditSettings(database="postgresql+psycopg://u@h/d", rotate_mb=1, archive_folder=Path("/tmp"))
