"""The audit log as parquet, a row a decision: what was decided, and the columns of its record.

`record` (in the first row of each record) has the record's canonical bytes, as `records` describes them: with them and
`hash` the chain can be verified from the file alone.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from reward_service.audit.decisions import decisions
from reward_service.audit.records import FIELDS, Row, encode_fields
from reward_service.audit.store import AuditStore, Snapshot
from reward_service.errors import AuditError

_GROUP_ROWS: Final = 20_000
_GROUP_CHARS: Final = 64 * 2**20
_LONG: Final = ("prompt", "completion", "rewards", "record")
_OF_RECORD: Final = (
    "seq",
    "prev_hash",
    "hash",
    "time_us",
    "caller",
    "run_id",
    "policy_version",
    "definitions",
    "service_version",
)
_OF_ITEM: Final = (
    "item",
    "item_id",
    "item_group",
    "prompt_sha256",
    "completion_sha256",
    "total",
    "rewards",
    "prompt",
    "completion",
    "record",
)


def rows_of(record: Row) -> Iterator[Row]:
    """A row for each decision of a record; AuditError if it was changed into what cannot be read."""
    shared = {name: record[name] for name in _OF_RECORD}
    canonical: bytes | None = encode_fields(record[name] for name in FIELDS)
    for one in decisions(record):
        total, rewards = one.read_result()
        texts = (one.item, one.item_id, one.group, one.prompt_sha256, one.completion_sha256)
        own = (*texts, total, rewards.decode(errors="replace"), one.prompt, one.completion, canonical)
        yield shared | dict(zip(_OF_ITEM, own, strict=True))
        canonical = None


def export_parquet(store: AuditStore, path: Path, *, run_id: str | None = None) -> int:
    """Writes all decisions, or those of one run, beside `path` and renames; gives their number.

    One row group is in memory at a time. The file's metadata name the head and how the chain is hashed, so
    that a whole log can be verified from the file alone.

    Args:
        store: Read in one transaction: what is written meanwhile is not in the file.
        path: Its folder must exist.
        run_id: None: all runs.

    Raises:
        AuditError: pyarrow is missing, or the file cannot be written.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise AuditError("the export as parquet needs pyarrow: pip install 'rlvr[audit]'") from None
    num_rows = 0
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with store.snapshot() as snapshot, os.fdopen(descriptor, "wb") as file:
                schema = _schema(pa).with_metadata(_metadata(snapshot))
                with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
                    for rows in row_groups(row for record in snapshot.records(run_id) for row in rows_of(record)):
                        writer.write_table(_table(pa, schema, rows))
                        num_rows += len(rows)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise AuditError(f"cannot write {path}: {error.strerror or error}") from None
    return num_rows


def row_groups(
    rows: Iterable[Row], *, max_rows: int = _GROUP_ROWS, max_chars: int = _GROUP_CHARS
) -> Iterator[list[Row]]:
    """The rows in lists, each ended by whichever limit it reaches first.

    Args:
        rows: Of any number; one list of them is in memory at a time.
        max_rows: Of a list.
        max_chars: Of the long columns of a list; a single row may have more.
    """
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
    numbers = ("seq", "time_us", "policy_version", "item")
    kinds = {name: pa.int64() for name in numbers} | {"total": pa.float64(), "record": pa.binary()}
    fields = [(name, kinds.get(name, pa.string())) for name in (*_OF_RECORD, *_OF_ITEM)]
    return pa.schema([*fields, ("time", pa.timestamp("us", tz="UTC"))])


def _table(pa: Any, schema: Any, rows: list[Row]) -> Any:
    columns = [[row["time_us" if name == "time" else name] for row in rows] for name in schema.names]
    try:
        arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    except (pa.ArrowException, UnicodeError) as error:
        first, last = rows[0]["seq"], rows[-1]["seq"]
        raise AuditError(f"records {first} to {last} hold a value of a wrong kind ({error}); verify the log") from None
    return pa.Table.from_arrays(arrays, schema=schema)
