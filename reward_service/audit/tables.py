"""The tables of the audit log; what each is for, `store` says."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

INDEX_CHARS: Final = 200

METADATA: Final = sa.MetaData()
_BIG = sa.BigInteger()
RECORDS: Final = sa.Table(
    "audit_records",
    METADATA,
    # SQLite keeps rows in the order of an INTEGER key, and of no other
    sa.Column("seq", _BIG.with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=False),
    sa.Column("prev_hash", sa.Text, nullable=False),
    sa.Column("time_us", _BIG, nullable=False),
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text),
    sa.Column("policy_version", _BIG),
    sa.Column("definitions", sa.Text, nullable=False),
    sa.Column("service_version", sa.Text, nullable=False),
    sa.Column("item_id", sa.Text, nullable=False),
    sa.Column("item_group", sa.Text),
    sa.Column("prompt_sha256", sa.Text, nullable=False),
    sa.Column("completion_sha256", sa.Text, nullable=False),
    sa.Column("rewards", sa.Text, nullable=False),
    sa.Column("total", sa.Double),
    sa.Column("prompt", sa.Text),
    sa.Column("completion", sa.Text),
    sa.Column("hash", sa.Text, nullable=False),
)
# PostgreSQL refuses index rows of 2.7 kB, and ids may be as long as they like: there the index is on prefixes. As text,
# since an expression with bound numbers would not be the indexed one.
PREFIXES: Final = {
    column.name: sa.literal_column(f"substr({column.name}, 1, {INDEX_CHARS})", sa.Text)
    for column in (RECORDS.c.run_id, RECORDS.c.item_id)
}
sa.Index("audit_records_by_run", RECORDS.c.run_id).ddl_if(dialect="sqlite")
sa.Index("audit_records_by_item", RECORDS.c.item_id, RECORDS.c.run_id).ddl_if(dialect="sqlite")
sa.Index("audit_records_by_run_prefix", PREFIXES["run_id"], RECORDS.c.seq).ddl_if(dialect="postgresql")
sa.Index("audit_records_by_item_prefix", *reversed(PREFIXES.values()), RECORDS.c.seq).ddl_if(dialect="postgresql")
HEAD: Final = sa.Table(
    "audit_head",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", _BIG, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("algorithm", sa.Text, nullable=False),
    sa.Column("messages", _BIG),  # of all sessions; NULL in a log of before it was counted
)
SESSIONS: Final = sa.Table(
    "audit_sessions",
    METADATA,
    sa.Column("session", sa.Text, primary_key=True),
    sa.Column("messages", _BIG, nullable=False),
)
SEGMENTS: Final = sa.Table(
    "audit_segments",
    METADATA,
    sa.Column("first_seq", _BIG, nullable=False),
    sa.Column("last_seq", _BIG, primary_key=True, autoincrement=False),
    sa.Column("last_hash", sa.Text, nullable=False),
    sa.Column("last_time_us", _BIG, nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("removed_us", _BIG),
    sa.Column("seal", sa.Text, nullable=False),
)
