"""The audit log in a database: SQLite by default, PostgreSQL by URL.

Tables: `audit_records` (the columns of `records.FIELDS`, and `hash`), `audit_head` (one row: the last record and how
the chain is hashed), `audit_sessions` (how many messages of which server are committed, so that a writer that is
started again neither leaves one out nor writes one twice), `audit_segments` (what was rotated and removed, see
`rotation`). A commit changes all of them or none.

Two writers of one log take turns: every commit first locks the head and reads it, so the chain does not fork.
- SQLite: `BEGIN IMMEDIATE`. WAL, so that readers do not wait; `synchronous=FULL`, as one fsync a commit, two commits
  a second, costs nothing, and with NORMAL a power failure would take the commits since the last checkpoint with it.
  The file has to lie on a local disk, and is made readable by its owner alone.
- PostgreSQL: `SELECT … FOR UPDATE` of the head.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import sqlalchemy as sa

from reward_service.audit.database import make_engine, parse_url, translated
from reward_service.audit.decisions import Decision, decisions
from reward_service.audit.records import FIELDS, GENESIS, Head, Row, Segment, Values, chain, storable
from reward_service.audit.settings import AuditSettings
from reward_service.audit.tables import HEAD, INDEX_CHARS, METADATA, RECORDS, RUN_PREFIX, SEGMENTS, SESSIONS
from reward_service.errors import AuditError

_SCHEMA_LOCK: Final = 0x726C7672  # any number that is ours
_READ_ROWS: Final = 16
"""Records in memory at a time when many are read; one may hold megabytes."""
_RETRY_S: Final = 0.05
_SAMPLE_ROWS: Final = 500


class AuditStore:
    """One log. Usable from any thread, one transaction at a time from each; `close` when done.

    Writing needs `create`; reading an existing log does not, and then a log that is not there is an error.
    """

    def __init__(
        self, database: str, *, key: bytes | None = None, busy_timeout_s: float = 10.0, archive: Path | None = None
    ) -> None:
        """`archive`: where rotated files are; None: beside the SQLite file."""
        self.key = key
        self._url = parse_url(database)
        self._busy_timeout_s = busy_timeout_s
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        self._engine = make_engine(self._url, busy_timeout_s)
        path = Path(str(self._url.database))
        self.archive = archive if archive is not None else path.parent if self._is_sqlite else Path()
        self.stem = path.stem

    @classmethod
    def of(cls, settings: AuditSettings, key: bytes | None = None) -> Self:
        """The log of a service's settings."""
        return cls(settings.database, key=key, busy_timeout_s=settings.busy_timeout_s, archive=settings.archive_folder)

    @property
    def name(self) -> str:
        """Where the log is, without a password."""
        return str(self._url.database) if self._is_sqlite else self._url.render_as_string(hide_password=True)

    @property
    def algorithm(self) -> str:
        """How records of this store are hashed: sha256 or hmac-sha256."""
        return "sha256" if self.key is None else "hmac-sha256"

    def create(self) -> Head:
        """Makes the tables if they are missing, and gives the head; AuditError if the log there is not as it should."""
        if self._is_sqlite:
            self._create_file()
        with self._writing() as connection:
            if not self._is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            _check_format(connection, self.name)
            METADATA.create_all(connection)
            # Locked, as another writer may be appending between this statement and the next.
            stored = connection.execute(sa.select(HEAD).with_for_update()).one_or_none()
            if stored is None:
                if connection.execute(sa.select(RECORDS.c.seq).limit(1)).first() is not None:
                    raise AuditError(f"{self.name} holds records but no head; run `rlvr reward audit verify`")
                head = {"id": 1, "seq": 0, "hash": GENESIS, "algorithm": self.algorithm, "messages": 0}
                connection.execute(sa.insert(HEAD), head)
                return Head(0, GENESIS)
            self._check_algorithm(stored.algorithm)
            head_there = Head(stored.seq, stored.hash)
            last = connection.execute(
                sa.select(RECORDS.c.seq, RECORDS.c.hash).order_by(RECORDS.c.seq.desc()).limit(1)
            ).first()
            base = _segments(connection)[-1:]
            end = Head(0, GENESIS) if not base else Head(base[0].last_seq, base[0].last_hash)
            if (end if last is None else Head(*last)) != head_there:
                raise AuditError(
                    f"{self.name} ends in another record than its head says; run `rlvr reward audit verify`, "
                    "and begin a new log"
                )
            if _all_messages(connection) != stored.messages:
                raise AuditError(
                    f"{self.name} has other sessions than its head says; run `rlvr reward audit verify`, "
                    "and begin a new log"
                )
            return head_there

    def append(self, pending: Sequence[Values], *, session: str, messages: int) -> Head:
        """Chains and commits the records, and that `messages` of this session are committed; gives the new head.

        If as many are committed already (the answer to a commit got lost), nothing is written again.

        Args:
            pending: In the order in which they are to be numbered.
            session: Of the writer; a new one each time that it starts.
            messages: Those of the session so far, these included.

        Raises:
            AuditError: The log has lost its head, or the database does not take it in time.
        """
        with self._writing() as connection:
            stored = connection.execute(sa.select(HEAD).with_for_update()).one_or_none()
            if stored is None:
                raise AuditError(f"{self.name} has lost its head; run `rlvr reward audit verify`")
            head = Head(stored.seq, stored.hash)
            before = _committed(connection, session)
            if before is not None and before >= messages:
                return head
            rows, head = chain(pending, head, self.key)
            if rows:
                self._insert(connection, rows)
            counted = stored.messages + messages - (before or 0)
            connection.execute(sa.update(HEAD).values(seq=head.seq, hash=head.hash, messages=counted))
            if before is None:
                connection.execute(sa.insert(SESSIONS), {"session": session, "messages": messages})
            else:
                connection.execute(sa.update(SESSIONS).where(SESSIONS.c.session == session).values(messages=messages))
        return head

    def committed_messages(self, session: str) -> int:
        """How many messages of that session are in the log."""
        with self._reading() as connection:
            return _committed(connection, session) or 0

    def explain(
        self, run_id: str | None, item_id: str | None = None, *, caller: str | None = None, limit: int = 100
    ) -> list[Decision]:
        """The newest decisions of a run (None: of requests that named none) and item (None: any), newest first.

        With `caller` only what that caller asked for. As they are stored; `decisions.describe` makes them readable.

        Args:
            caller: Name of an API key; None: whoever asked.
            limit: Most decisions. A record holds all of a request, and is read whole.

        Raises:
            AuditError: The database does not answer in time.
        """
        statement = sa.select(RECORDS).where(*self._is_run(run_id)).order_by(RECORDS.c.seq.desc())
        if item_id is not None:
            statement = statement.where(self._holds(item_id))
        if caller is not None:
            statement = statement.where(RECORDS.c.caller == storable(caller))
        with self._reading() as connection:
            rows = connection.execution_options(yield_per=_READ_ROWS).execute(statement).mappings()
            found = (one for row in rows for one in reversed(decisions(dict(row))))
            return list(itertools.islice((one for one in found if item_id in (None, one.item_id)), limit))

    def size_bytes(self) -> int:
        """About how large the log is, without what it could give back."""
        with self._reading() as connection:
            if self._is_sqlite:
                pages, free, size = (
                    int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                    for name in ("page_count", "freelist_count", "page_size")
                )
                return (pages - free) * size
            newest = sa.select(RECORDS).order_by(RECORDS.c.seq.desc()).limit(_SAMPLE_ROWS).subquery()
            mean = sa.select(sa.func.avg(sa.func.pg_column_size(sa.text(newest.name)))).select_from(newest)
            span = sa.select(sa.func.max(RECORDS.c.seq) - sa.func.min(RECORDS.c.seq))
            return round(float(connection.execute(mean).scalar() or 0) * (connection.execute(span).scalar() or 0))

    def fill(self, rows: Iterable[Row], *, before: Segment | None) -> None:
        """Puts records into a new log as they are, behind `before`."""
        with self._writing() as connection:
            if before is not None:
                start = before._replace(first_seq=1, file="", removed_us=None).sealed(self.key)
                connection.execute(sa.insert(SEGMENTS), start._asdict())
            names, row = (*FIELDS, "hash"), None
            pending = iter(rows)
            while some := list(itertools.islice(pending, _READ_ROWS)):
                row = some[-1]
                self._insert(connection, [tuple(one[name] for name in names) for one in some])
            if row is not None:
                connection.execute(sa.update(HEAD).values(seq=row["seq"], hash=row["hash"]))

    def cut(self, segment: Segment, *, publish: Callable[[], None]) -> None:
        """Takes a segment out of the log: `publish` is called before it is gone.

        Args:
            segment: The oldest records of the log.
            publish: Puts what was taken out where it is kept; if it raises, the log stays as it was.

        Raises:
            AuditError: Somebody else took something out since it was read.
        """
        with self._writing() as connection:
            connection.execute(sa.select(HEAD).with_for_update())
            there = _segments(connection)
            if segment.first_seq != (there[-1].last_seq + 1 if there else 1):
                raise AuditError(f"{self.name} was rotated by another writer")
            publish()
            connection.execute(sa.insert(SEGMENTS), segment._asdict())
            connection.execute(sa.delete(RECORDS).where(RECORDS.c.seq <= segment.last_seq))

    def replace_segment(self, segment: Segment) -> None:
        """Writes what has become of a segment."""
        with self._writing() as connection:
            changed = sa.update(SEGMENTS).where(SEGMENTS.c.last_seq == segment.last_seq)
            connection.execute(changed.values(**segment._asdict()))

    def _insert(self, connection: sa.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Rows of `chain`. SQLAlchemy's own inserts take three times as long as SQLite does."""
        names = (*FIELDS, "hash")
        if self._is_sqlite:
            marks = ", ".join("?" * len(names))
            connection.exec_driver_sql(f"INSERT INTO {RECORDS.name} ({', '.join(names)}) VALUES ({marks})", list(rows))
            return
        # COPY takes less than half the time of INSERTs. SQLAlchemy has no words for it, and does not see its errors.
        driver: Any = connection.connection.driver_connection
        try:
            with driver.cursor() as cursor, cursor.copy(f"COPY {RECORDS.name} ({', '.join(names)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        except driver.Error as error:
            raise AuditError(f"audit log {self.name}: {' '.join(str(error).split())}") from error

    def _is_run(self, run_id: str | None) -> Iterator[sa.ColumnElement[bool]]:
        """`run_id = …`, in a form that the index serves."""
        stored, prefix = storable(run_id), RUN_PREFIX
        yield RECORDS.c.run_id == stored
        if not self._is_sqlite:
            yield prefix == (stored and stored[:INDEX_CHARS])

    def _holds(self, item_id: str) -> sa.ColumnElement[bool]:
        """Whether a record may hold the item: the bytes of its identifier are among those of `item_ids`."""
        mark = sa.literal(msgspec.msgpack.encode(item_id), sa.LargeBinary)
        if self._is_sqlite:
            return sa.func.instr(RECORDS.c.item_ids, mark) > 0
        return sa.func.position(mark.op("IN")(RECORDS.c.item_ids), type_=sa.Integer) > 0

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """One unchanging view of the log, whoever writes meanwhile."""
        with self._reading() as connection:
            yield Snapshot(connection, self._is_run)

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def _check_algorithm(self, there: str) -> None:
        if there != self.algorithm:
            need = "an hmac_key_file" if there.startswith("hmac") else "no hmac_key_file"
            raise AuditError(f"{self.name} is chained by {there}, which takes {need}; change that, or begin a new log")

    def _create_file(self) -> None:
        path = Path(str(self._url.database))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise AuditError(f"cannot write the audit log {path}: {error.strerror}; give another database") from None

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with translated(self.name), self._engine.connect() as connection:
            if self._is_sqlite:
                self._begin_immediate(connection)
            with connection.begin():
                yield connection

    def _begin_immediate(self, connection: sa.Connection) -> None:
        """WAL is a property of the file, and two that turn it on at once get an error instead of waiting."""
        deadline = time.monotonic() + self._busy_timeout_s
        connection.info["begin"] = "BEGIN IMMEDIATE"
        while True:
            try:
                driver: Any = connection.connection.dbapi_connection
                if driver.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    driver.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise AuditError(f"{self.name}: {error}") from None
                time.sleep(_RETRY_S)

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        if self._is_sqlite and not Path(str(self._url.database)).is_file():
            raise AuditError(f"there is no audit log {self.name}; --database names the one that the service writes to")
        with translated(self.name), self._engine.connect() as connection:
            if self._is_sqlite:
                connection.info["begin"] = "BEGIN"
            else:
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                _check_format(connection, self.name)
                yield connection


class Snapshot:
    """What `AuditStore.snapshot` shows."""

    def __init__(
        self,
        connection: sa.Connection,
        is_run: Callable[[str | None], Iterator[sa.ColumnElement[bool]]],
    ) -> None:
        self._connection = connection
        self._is_run = is_run

    def heads(self) -> list[tuple[Head, str]]:
        """(head, algorithm); a list, as a manipulated log may have none or several."""
        rows = self._connection.execute(sa.select(HEAD.c.seq, HEAD.c.hash, HEAD.c.algorithm).order_by(HEAD.c.id))
        return [(Head(seq, hash_), algorithm) for seq, hash_, algorithm in rows]

    def sessions_finding(self) -> str | None:
        """What is wrong with the sessions; None if nothing is."""
        if not sa.inspect(self._connection).has_table(SESSIONS.name):
            return "the sessions: their table is missing"
        counted = self._connection.execute(sa.select(HEAD.c.messages)).scalars().first()
        there = _all_messages(self._connection)
        if counted is None or counted == there:
            return None
        return f"the sessions: {there} messages of them are there, and the head counts {counted}"

    def segments(self) -> list[Segment]:
        """What is no longer in the log itself, in order."""
        there = sa.inspect(self._connection).has_table(SEGMENTS.name)
        return _segments(self._connection) if there else []

    def record(self, seq: int) -> Row | None:
        """One record."""
        row = self._connection.execute(sa.select(RECORDS).where(RECORDS.c.seq == seq)).mappings().first()
        return None if row is None else dict(row)

    def last_before(self, time_us: int) -> Row | None:
        """The last of the records at the log's beginning that are older than that."""
        newer = sa.select(RECORDS.c.seq).where(RECORDS.c.time_us >= time_us).order_by(RECORDS.c.seq).limit(1)
        old = sa.select(RECORDS).order_by(RECORDS.c.seq.desc()).limit(1)
        if (first := self._connection.execute(newer).scalar()) is not None:
            old = old.where(RECORDS.c.seq < first)
        row = self._connection.execute(old).mappings().first()
        return None if row is None else dict(row)

    def records(self, run_id: str | None = None, *, until: int | None = None) -> Iterator[Row]:
        """All records, or those of one run, by sequence number; a few are in memory at a time."""
        statement = sa.select(RECORDS).order_by(RECORDS.c.seq)
        if until is not None:
            statement = statement.where(RECORDS.c.seq <= until)
        if run_id is not None:
            statement = statement.where(*self._is_run(run_id))
        result = self._connection.execution_options(yield_per=_READ_ROWS).execute(statement)
        names = (*FIELDS, "hash")
        columns = [list(result.keys()).index(name) for name in names]
        for row in result:
            yield {name: row[index] for name, index in zip(names, columns, strict=True)}


def _check_format(connection: sa.Connection, name: str) -> None:
    """AuditError for a log of before version 2 of the format, which had a record for each item."""
    inspector = sa.inspect(connection)
    if not inspector.has_table(RECORDS.name):
        return
    if RECORDS.c.item_ids.name not in {column["name"] for column in inspector.get_columns(RECORDS.name)}:
        raise AuditError(
            f"{name} is a log of the format rlvr-audit-1, with a record for each item, and this version knows"
            " rlvr-audit-2 alone: begin a new log (another audit.database), and verify the old one by the version of"
            " rlvr that wrote it, which its column service_version names"
        )


def _committed(connection: sa.Connection, session: str) -> int | None:
    statement = sa.select(SESSIONS.c.messages).where(SESSIONS.c.session == session)
    messages: int | None = connection.execute(statement).scalar_one_or_none()
    return messages


def _segments(connection: sa.Connection) -> list[Segment]:
    return [Segment(*row) for row in connection.execute(sa.select(SEGMENTS).order_by(SEGMENTS.c.last_seq))]


def _all_messages(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.sum(SESSIONS.c.messages), 0))).scalar_one())
