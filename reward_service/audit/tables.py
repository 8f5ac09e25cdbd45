"""The tables of the audit log; what each is for, `store` says."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

INDEX_CHARS: Final = 200
ITEM_COLUMNS: Final = ("item_ids", "item_groups", "prompt_sha256", "completion_sha256", "results")

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
    sa.Column("num_items", _BIG, nullable=False),
    *(sa.Column(name, sa.LargeBinary, nullable=False) for name in ITEM_COLUMNS),
    sa.Column("prompts", sa.LargeBinary),
    sa.Column("completions", sa.LargeBinary),
    sa.Column("hash", sa.Text, nullable=False),
)
# PostgreSQL refuses index rows of 2.7 kB, and names may be as long as they like: there the index is on a prefix. As
# text, since an expression with bound numbers would not be the indexed one.
RUN_PREFIX: Final = sa.literal_column(f"substr(run_id, 1, {INDEX_CHARS})", sa.Text)
sa.Index("audit_records_by_run", RECORDS.c.run_id).ddl_if(dialect="sqlite")
sa.Index("audit_records_by_run_prefix", RUN_PREFIX, RECORDS.c.seq).ddl_if(dialect="postgresql")
HEAD: Final = sa.Table(
    "audit_head",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", _BIG, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("algorithm", sa.Text, nullable=False),
    sa.Column("messages", _BIG, nullable=False),  # of all sessions
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
