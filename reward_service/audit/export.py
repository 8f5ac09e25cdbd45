"""The audit log as parquet: the columns of `records.FIELDS` and `hash` as they are, and `time` as a timestamp."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from reward_service.audit.records import FIELDS, Row
from reward_service.audit.store import AuditStore, Snapshot
from reward_service.errors import AuditError

_GROUP_ROWS: Final = 20_000
_GROUP_CHARS: Final = 64 * 2**20
_LONG: Final = ("prompt", "completion", "rewards")


def export_parquet(store: AuditStore, path: Path, *, run_id: str | None = None) -> int:
    """Writes all records, or those of one run, beside `path` and renames; gives their number.

    One row group of records is in memory at a time. The file's metadata name the head and how the chain is hashed, so
    that a whole log can be verified from the file alone. AuditError if pyarrow is missing or it cannot be written.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise AuditError("the export as parquet needs pyarrow: pip install 'rlvr[audit]'") from None
    num_records = 0
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with store.snapshot() as snapshot, os.fdopen(descriptor, "wb") as file:
                schema = _schema(pa).with_metadata(_metadata(snapshot))
                with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
                    for rows in row_groups(snapshot.records(run_id)):
                        writer.write_table(_table(pa, schema, rows))
                        num_records += len(rows)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise AuditError(f"cannot write {path}: {error.strerror or error}") from None
    return num_records


def row_groups(
    rows: Iterable[Row], *, max_rows: int = _GROUP_ROWS, max_chars: int = _GROUP_CHARS
) -> Iterator[list[Row]]:
    """The rows in lists, each ended by whichever limit it reaches first."""
    group: list[Row] = []
    chars = 0
    for row in rows:
        group.append(row)
        chars += sum(len(row[name] or "") for name in _LONG)
        if len(group) >= max_rows or chars >= max_chars:
            yield group
            group, chars = [], 0
    if group:
        yield group


def _metadata(snapshot: Snapshot) -> dict[str, str]:
    heads = snapshot.heads()
    if len(heads) != 1:
        raise AuditError("the log has no single head; run `rlvr reward audit verify`")
    head, algorithm = heads[0]
    return {"rlvr.audit.head": str(head), "rlvr.audit.algorithm": algorithm}


def _schema(pa: Any) -> Any:
    kinds = {"seq": pa.int64(), "time_us": pa.int64(), "policy_version": pa.int64(), "total": pa.float64()}
    fields = [(name, kinds.get(name, pa.string())) for name in (*FIELDS, "hash")]
    return pa.schema([*fields, ("time", pa.timestamp("us", tz="UTC"))])


def _table(pa: Any, schema: Any, rows: list[Row]) -> Any:
    columns = [[row["time_us" if name == "time" else name] for row in rows] for name in schema.names]
    try:
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    except (pa.ArrowException, UnicodeError) as error:
        first, last = rows[0]["seq"], rows[-1]["seq"]
        raise AuditError(f"records {first} to {last} hold a value of a wrong kind ({error}); verify the log") from None
    return pa.Table.from_arrays(arrays, schema=schema)
