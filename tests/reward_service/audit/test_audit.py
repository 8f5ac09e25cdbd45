"""The audit log in a database: what is written is read, and every manipulation is found, in SQLite and PostgreSQL."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from reward_service.audit.decisions import decisions, describe
from reward_service.audit.export import export_parquet, row_groups
from reward_service.audit.handle import AuditHandle
from reward_service.audit.records import FIELDS, GENESIS, Row, chain_hash, record_hash
from reward_service.audit.settings import AuditSettings
from reward_service.audit.store import AuditStore
from reward_service.audit.tables import HEAD, RECORDS, SEGMENTS, SESSIONS
from reward_service.audit.verify import MAX_FINDINGS, verify
from reward_service.errors import AuditError
from tests.reward_service.audit.audit_cases import KEY, batch, batch_of, recorded
from tests.reward_service.audit.postgres import running_postgres
from tests.waiting import until_async


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with running_postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "audit.sqlite3")
    url: str = request.getfixturevalue("postgres")
    return emptied(url)


@pytest.fixture
def store(database: str) -> Iterator[AuditStore]:
    """A log of six records in three commits, of two items each."""
    store = AuditStore(database)
    store.create()
    for number in range(3):
        store.append(recorded(batch(2 * number), batch(2 * number + 1)), session="s", messages=2 * number + 2)
    yield store
    store.close()


def raw(database: str) -> sa.Engine:
    """What somebody with access to the database has."""
    return sa.create_engine(database if "://" in database else f"sqlite:///{database}", poolclass=sa.NullPool)


def emptied(url: str) -> str:
    with raw(url).begin() as connection:
        for table in (RECORDS, HEAD, SESSIONS, SEGMENTS):
            table.drop(connection, checkfirst=True)
    return url


def manipulate(database: str, *statements: str) -> None:
    with raw(database).begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


# the log


def test_what_is_written_is_read(store: AuditStore, database: str) -> None:
    found = verify(store)
    assert (found.num_records, found.num_decisions, found.findings, found.algorithm) == (6, 12, (), "sha256")
    (decision,) = store.explain("run", "2/1")
    assert (decision.record["seq"], decision.item, decision.completion) == (3, 1, "72")
    record = describe(decision)
    assert (record["time"], record["total"], record["policy_version"]) == ("2023-11-14T22:13:20.000002Z", 1.5, 3)
    assert record["rewards"]["gsm8k_correctness"] == {
        "weight": 1.0, "version": "b" * 64, "score": 1.0, "reason": None, "details": {"extracted": "72"},
    }  # fmt: skip
    assert [one.item_id for one in store.explain("run", limit=3)] == ["5/1", "5/0", "4/1"]
    assert store.explain(None) == store.explain("run", "none") == store.explain("run", caller="bob") == []
    again = AuditStore(database)
    assert again.create() == found.head
    assert again.committed_messages("s") == 6
    again.close()


def test_any_text_is_kept(store: AuditStore) -> None:
    """U+0000, ids of a megabyte, quotes, other scripts."""
    nasty = ["\0", "x" * 10**6, "'; DROP TABLE audit_records; --", "\\u0000", "数 𝟙 \u202e", ""]
    for number, text in enumerate(nasty, 7):
        one = batch_of([text, "other"], run_id="\0", group=text, prompt=text, completion=text)
        store.append(recorded(one), session="s", messages=number)
    assert verify(store).findings == ()
    for text in nasty:
        (decision,) = store.explain("\0", text)
        assert (decision.completion, decision.group) == (text, text)
        assert decision.completion_sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_an_item_is_found_among_many_requests(store: AuditStore) -> None:
    """One whose identifier is part of another's, or of two neighbours together, is another item."""
    store.append(recorded(batch_of(["12", "3", "123"])), session="s", messages=7)
    store.append(recorded(batch_of(["3", "3"])), session="s", messages=8)
    assert [(one.record["seq"], one.item) for one in store.explain("run", "3")] == [(8, 1), (8, 0), (7, 1)]
    assert [(one.record["seq"], one.item) for one in store.explain("run", "123")] == [(7, 2)]
    assert store.explain("run", "2") == store.explain("run", "1") == []


def test_a_commit_whose_answer_got_lost_is_not_repeated(store: AuditStore) -> None:
    before = verify(store).head
    assert store.append(recorded(batch(5)), session="s", messages=6) == before
    assert verify(store).head == before
    store.append(recorded(batch(5)), session="another", messages=3)
    assert verify(store).num_records == 7


@pytest.mark.parametrize("busy_timeout_s", [0.01, 30.0])
def test_another_writers_transaction_is_waited_for_as_long_as_the_settings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy_timeout_s: float
) -> None:
    """Whoever has the time to wait writes when the other is done; whoever has not is told."""
    path = str(tmp_path / "audit.sqlite3")
    settings = AuditSettings(database=path, busy_timeout_s=busy_timeout_s)
    store = AuditStore(settings.database, busy_timeout_s=settings.busy_timeout_s)
    store.create()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.5, other.rollback)
    done.start()
    try:
        if busy_timeout_s < 0.5:
            with pytest.raises(AuditError, match="locked"):
                store.append(recorded(batch(0)), session="s", messages=1)
        else:
            store.append(recorded(batch(0)), session="s", messages=1)
            assert verify(store).num_records == 1
    finally:
        done.join()
        other.close()
        store.close()


def test_a_log_of_the_earlier_format_is_refused_with_the_remedy(store: AuditStore, database: str) -> None:
    manipulate(database, "ALTER TABLE audit_records RENAME COLUMN item_ids TO item_id")
    for use in (store.create, lambda: verify(store), lambda: store.explain("run")):
        with pytest.raises(AuditError, match=r"format rlvr-audit-1.*begin a new log"):
            use()


def test_two_writers_do_not_fork_the_chain(database: str) -> None:
    errors: list[Exception] = []

    def write(name: str) -> None:
        try:
            store = AuditStore(database)
            store.create()
            for number in range(20):
                store.append(recorded(batch(number)), session=name, messages=number + 1)
            store.close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    store = AuditStore(database)
    found = verify(store)
    assert (found.num_records, found.findings) == (3 * 20, ())
    store.close()


async def test_a_lost_connection_is_made_again(postgres: str) -> None:
    settings = AuditSettings(database=emptied(postgres), flush_s=0.01)
    handle = await AuditHandle.start(settings, service_version="1")
    for number in range(4):
        for _ in range(20):
            handle.offer(batch(number, num_items=10))
        manipulate(
            postgres,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rlvr-audit'",
        )
        await until_async(lambda: not handle.bytes_in_flight and not handle.failed)
    await handle.close()
    store = AuditStore(postgres)
    found = verify(store)
    store.close()
    assert (found.num_records, found.num_decisions, found.findings) == (80, 800, ())


# manipulation

CHANGES = {
    "prev_hash": "'" + "1" * 64 + "'", "time_us": "5", "caller": "'bob'", "run_id": "NULL", "policy_version": "4",
    "definitions": "'{}'", "service_version": "'2'", "num_items": "1", "item_ids": "item_groups",
    "item_groups": "item_ids", "prompt_sha256": "completion_sha256", "completion_sha256": "prompt_sha256",
    "results": "item_ids", "prompts": "NULL", "completions": "prompts", "hash": "'" + "2" * 64 + "'",
}  # fmt: skip


@pytest.mark.parametrize("column", [*CHANGES])
def test_a_changed_column_is_found(store: AuditStore, database: str, column: str) -> None:
    assert {*CHANGES, "seq"} == {*FIELDS, "hash"}
    manipulate(database, f"UPDATE audit_records SET {column} = {CHANGES[column]} WHERE seq = 3")
    findings = verify(store).findings
    assert any(finding.startswith("record 3: changed") for finding in findings), findings


def test_any_byte_and_any_order_of_an_items_columns_counts(store: AuditStore, database: str) -> None:
    """One bit of each byte in turn; and two items exchanged, or one left out, with every column in step."""
    with store.snapshot() as snapshot:
        row = list(snapshot.records())[2]
    for column in ("item_ids", "item_groups", "prompt_sha256", "completion_sha256", "results", "prompts"):
        for at in range(0, len(row[column]), 7):
            data = bytearray(row[column])
            data[at] ^= 1
            assert record_hash({**row, column: bytes(data)}) != row["hash"]
    for numbers in ([1, 0], [0]):
        changed = {**row, "num_items": len(numbers)} | _with_items(row, numbers)
        assert [one.item_id for one in decisions(changed)] == [f"2/{n}" for n in numbers]
        with raw(database).begin() as connection:
            connection.execute(sa.update(RECORDS).where(RECORDS.c.seq == 3).values(**changed))
        assert verify(store).findings[0].startswith("record 3: changed")


def _with_items(row: Row, numbers: list[int]) -> Row:
    """The columns of items with those that were at these places."""
    packed = ("item_ids", "item_groups", "results", "prompts", "completions")
    digests = ("prompt_sha256", "completion_sha256")
    return {
        name: msgspec.msgpack.encode([msgspec.msgpack.decode(row[name])[n] for n in numbers]) for name in packed
    } | {name: b"".join(row[name][32 * n : 32 * n + 32] for n in numbers) for name in digests}


COPY = ", ".join(column.name for column in RECORDS.c if column.name != "seq")
SWAP = ("UPDATE audit_records SET seq = 100 WHERE seq = 2", "UPDATE audit_records SET seq = 2 WHERE seq = 4",
        "UPDATE audit_records SET seq = 4 WHERE seq = 100")  # fmt: skip


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        pytest.param(["DELETE FROM audit_records WHERE seq = 1"], "record 1: missing", id="first dropped"),
        pytest.param(["DELETE FROM audit_records WHERE seq IN (3, 4)"], "records 3 to 4: missing", id="middle dropped"),
        pytest.param(["DELETE FROM audit_records WHERE seq = 6"], "record 6: missing at the end", id="last dropped"),
        pytest.param(["DELETE FROM audit_records"], "records 1 to 6: missing at the end", id="all dropped"),
        pytest.param(["UPDATE audit_records SET seq = 9 WHERE seq = 3"], "record 3: missing", id="moved"),
        pytest.param(
            [f"INSERT INTO audit_records (seq, {COPY}) SELECT 7, {COPY} FROM audit_records WHERE seq = 6"],
            "record 7: put in behind the head", id="put in at the end",
        ),
        pytest.param(
            [f"INSERT INTO audit_records (seq, {COPY}) SELECT 0, {COPY} FROM audit_records WHERE seq = 1"],
            "record 0: put in", id="put in at the beginning",
        ),
        pytest.param([*SWAP], "record 2: does not follow record 1", id="swapped"),
        pytest.param(["DELETE FROM audit_head"], "the head: there are 0 rows", id="head dropped"),
        pytest.param(["UPDATE audit_head SET seq = 5"], "record 6: put in behind the head", id="head set back"),
        pytest.param(["UPDATE audit_head SET hash = 'x'"], "record 6: replaced", id="head changed"),
        pytest.param(["DROP TABLE audit_sessions"], "the sessions: their table is missing", id="sessions dropped"),
        pytest.param(["DELETE FROM audit_sessions"], "the sessions: 0 messages", id="sessions emptied"),
        pytest.param(["UPDATE audit_sessions SET messages = 9"], "the sessions: 9 messages", id="sessions changed"),
        pytest.param(["UPDATE audit_head SET algorithm = 'hmac-sha256'"], "give its HMAC key", id="algorithm"),
    ],
)  # fmt: skip
def test_manipulation_is_found(store: AuditStore, database: str, statements: list[str], expected: str) -> None:
    manipulate(database, *statements)
    findings = verify(store).findings
    assert any(finding.startswith(expected) or expected in finding for finding in findings), findings


def test_a_record_hashed_again_is_found(store: AuditStore, database: str) -> None:
    """The last one too: the head names its hash. Only chaining everything again stays unseen, without a key."""
    for seq, expected in ((3, "record 4: does not follow record 3"), (6, "record 6: replaced")):
        with store.snapshot() as snapshot:
            row = {**list(snapshot.records())[seq - 1], "caller": "bob"}
        manipulate(database, f"UPDATE audit_records SET caller = 'bob', hash = '{record_hash(row)}' WHERE seq = {seq}")
        assert any(finding.startswith(expected) for finding in verify(store).findings)


def chain_anew(store: AuditStore, database: str) -> None:
    """All that a forger without the key can do: change the first record and hash everything again."""
    with store.snapshot() as snapshot:
        rows: list[Row] = [{**row} for row in snapshot.records()]
    rows[0]["caller"], last = "bob", GENESIS
    with raw(database).begin() as connection:
        for row in rows:
            row["prev_hash"] = last
            row["hash"] = last = record_hash(row)
            connection.execute(sa.update(RECORDS).where(RECORDS.c.seq == row["seq"]).values(**row))
        connection.execute(sa.update(HEAD).values(hash=last))


def test_a_head_kept_elsewhere_shows_what_the_log_cannot(store: AuditStore, database: str) -> None:
    kept = verify(store).head
    store.append(recorded(batch(6)), session="s", messages=7)
    assert verify(store, expected=kept).findings == ()
    with store.snapshot() as snapshot:
        shorter = list(snapshot.records())[4]
    manipulate(
        database,
        "DELETE FROM audit_records WHERE seq > 5",
        f"UPDATE audit_head SET seq = 5, hash = '{shorter['hash']}'",
    )
    assert verify(store).findings == ()
    assert verify(store, expected=kept).findings[0].startswith("record 6: missing, and was the head")
    kept = verify(store).head
    chain_anew(store, database)
    assert verify(store).findings == ()
    assert verify(store, expected=kept).findings[0].startswith("record 5: not the one that was expected")


def test_a_keyed_chain_cannot_be_made_anew(database: str) -> None:
    store = AuditStore(database, key=KEY)
    store.create()
    store.append(recorded(batch(0), batch(1)), session="s", messages=1)
    assert verify(store).findings == ()
    other = AuditStore(database, key=b"another key, and as long")
    assert verify(other).num_findings == 2
    plain = AuditStore(database)
    assert "give its HMAC key" in verify(plain).findings[0]
    with pytest.raises(AuditError, match="hmac-sha256, which takes an hmac_key_file"):
        plain.create()
    chain_anew(store, database)
    assert verify(store).num_findings == 2
    for each in (store, other, plain):
        each.close()


def test_findings_are_bounded(database: str) -> None:
    store = AuditStore(database)
    store.create()
    store.append(recorded(*map(batch, range(100))), session="s", messages=100)
    manipulate(database, "UPDATE audit_records SET caller = 'bob'")
    found = verify(store)
    assert (len(found.findings), found.num_findings) == (MAX_FINDINGS, 100)
    store.close()


def test_bytes_that_are_no_text_are_found(tmp_path: Path) -> None:
    path = str(tmp_path / "audit.sqlite3")
    store = AuditStore(path)
    store.create()
    store.append(recorded(batch(0), batch(1)), session="s", messages=2)
    manipulate(
        path,
        "UPDATE audit_records SET caller = CAST(x'ff' AS TEXT), num_items = x'00', item_ids = 7 WHERE seq = 1",
        "UPDATE audit_records SET hash = x'00' WHERE seq = 2",
    )
    assert verify(store).num_findings == 3  # the head too: its hash is not that of record 2 any more
    store.close()


def test_a_manipulated_end_stops_the_start(store: AuditStore, database: str) -> None:
    manipulate(database, "UPDATE audit_sessions SET messages = 2")
    with pytest.raises(AuditError, match="other sessions than its head says"):
        store.create()
    manipulate(database, "DROP TABLE audit_sessions")
    with pytest.raises(AuditError, match="other sessions than its head says"):
        store.create()  # which makes the table, and must not mend the log by that
    assert "the sessions: their table is missing" in verify(store).findings
    manipulate(database, "DELETE FROM audit_records WHERE seq = 6")
    with pytest.raises(AuditError, match="ends in another record than its head says"):
        store.create()
    manipulate(database, "DELETE FROM audit_head")
    with pytest.raises(AuditError, match="records but no head"):
        store.create()
    with pytest.raises(AuditError, match="has lost its head"):
        store.append(recorded(batch(0)), session="s", messages=9)


@pytest.mark.parametrize(
    ("database", "message"),
    [
        ("mysql://u:secret@h/d", "mysql is no audit database"),
        ("sqlite://", "give its path"),
        ("postgresql+psycopg://u:secret@127.0.0.1:1/d", r"postgresql\+psycopg://u:\*\*\*@127.0.0.1:1/d"),
        ("://", "cannot be read"),
        ("/dev/null/audit", "cannot write the audit log"),
    ],
)
def test_databases_that_cannot_be(database: str, message: str) -> None:
    with pytest.raises(AuditError, match=message) as caught:
        AuditStore(database).create()
    assert "secret" not in str(caught.value)


def test_reading_makes_no_log(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="there is no audit log"):
        verify(AuditStore(str(tmp_path / "none")))
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_the_owners_alone(tmp_path: Path) -> None:
    AuditStore(str(tmp_path / "new" / "audit")).create()
    assert (tmp_path / "new" / "audit").stat().st_mode & 0o777 == 0o600


def test_export(store: AuditStore, database: str, tmp_path: Path) -> None:
    from pyarrow import parquet

    store.append(recorded(batch(7, run_id="other")), session="s", messages=7)
    path = tmp_path / "out.parquet"
    assert export_parquet(store, path) == 14
    assert [file.name for file in tmp_path.iterdir() if "parquet" in file.name] == ["out.parquet"]
    table = parquet.read_table(path)
    assert table.schema.metadata[b"rlvr.audit.head"].decode() == str(verify(store).head)
    rows = table.to_pylist()
    firsts = rows[::2]
    assert [chain_hash(row["record"], None) for row in firsts] == [row["hash"] for row in firsts]
    assert [row["item_id"] for row in rows[-3:]] == ["5/1", "7/0", "7/1"]
    assert (rows[13]["total"], json.loads(rows[13]["rewards"])["gsm8k_format"]["score"]) == (1.5, 0.5)
    assert rows[13]["time"].isoformat() == "2023-11-14T22:13:20.000007+00:00"
    assert export_parquet(store, path, run_id="other") == 2
    manipulate(database, "UPDATE audit_records SET results = item_ids WHERE seq = 2")
    with pytest.raises(AuditError, match="record 2 cannot be read"):
        export_parquet(store, path)
    with pytest.raises(AuditError, match="cannot write"):
        export_parquet(store, tmp_path / "none" / "out.parquet")


def test_row_groups_are_bounded_in_rows_and_in_text() -> None:
    rows = [{"prompt": None, "completion": "x" * length, "rewards": "", "record": None} for length in (1, 1, 1, 9, 1)]
    assert [len(group) for group in row_groups(rows, max_rows=2, max_chars=8)] == [2, 2, 1]
