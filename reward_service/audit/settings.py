"""Settings of the audit log."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class AuditSettings(BaseModel):
    """Where decisions are recorded, and what of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str = Field(
        "reward_audit.sqlite3",
        min_length=1,
        repr=False,  # a URL may hold a password
        description="Path of a SQLite file on a local disk, or postgresql+psycopg://USER@HOST/DATABASE. A password is "
        "better left to PGPASSWORD or ~/.pgpass than put into the URL.",
    )
    keep_text: bool = Field(False, description="Keep prompts and completions; otherwise only their SHA-256.")
    hmac_key_file: Path | None = Field(
        None,
        description="File of at least 16 secret bytes (blanks at its ends are cut off). With it the chain is keyed: "
        "who can write to the database but not read this file cannot change a record and chain the rest again.",
    )
    rotate_mb: float | None = Field(
        None,
        gt=0,
        description="Size of the log in MB above which its older half is moved to a file of its own; null: never.",
    )
    archive_folder: Path | None = Field(
        None, description="Where these files go; null: beside the SQLite file. PostgreSQL needs one."
    )
    keep_days: float | None = Field(
        None, gt=0, description="Days after which records, and files that were rotated, are removed; null: never."
    )
    flush_s: float = Field(0.5, gt=0, le=60, description="A record is committed at the latest after so many seconds.")
    flush_records: int = Field(
        10_000, ge=1, description="Records, one a request, that are committed without waiting for flush_s."
    )
    max_bytes_in_flight: int = Field(
        64 * 2**20, ge=2**16, description="Bytes handed over and not yet committed; beyond it requests wait."
    )
    room_timeout_s: float = Field(
        10.0, gt=0, description="Time a request waits for the writer to catch up, seconds; then 503."
    )
    busy_timeout_s: float = Field(10.0, gt=0, description="Time to wait for another writer's transaction, seconds.")
    start_timeout_s: float = Field(30.0, gt=0, description="Time the writer has to start, seconds.")
    drain_timeout_s: float = Field(
        10.0, gt=0, description="Time the writer tries to commit what it has left after the service ended, seconds."
    )

    @model_validator(mode="after")
    def _has_a_place_for_files(self) -> Self:
        if self.rotate_mb is not None and self.archive_folder is None and "://" in self.database:
            raise ValueError("rotate_mb with a database that is no file needs archive_folder")
        return self
