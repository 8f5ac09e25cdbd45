"""Opening the audit log's database: SQLite or PostgreSQL by SQLAlchemy, with time-outs, and errors in our words."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from reward_service.errors import AuditError

_STATEMENT_TIMEOUT_MS: Final = 120_000
_CONNECT_TIMEOUT_S: Final = 10
_PAGE_BYTES: Final = 16384
"""Of a new SQLite file: a record of a batch is larger than SQLite's own 4096 bytes, and so fills fewer pages."""


def parse_url(database: str) -> sa.URL:
    """Of a SQLite file's path or a PostgreSQL URL; AuditError for anything else."""
    if "://" not in database:
        return sa.URL.create("sqlite", database=os.path.abspath(database))
    try:
        url = sa.make_url(database)
    except (ArgumentError, ValueError):
        raise AuditError("the audit database's URL cannot be read; write postgresql+psycopg://USER@HOST/NAME") from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise AuditError(f"{url.drivername} is no audit database; use a SQLite file's path or postgresql+psycopg://…")
    if url.drivername == "sqlite" and (not url.database or url.database == ":memory:" or url.query):
        raise AuditError("an audit log in SQLite is a file; give its path")
    return url


def make_engine(url: sa.URL, busy_timeout_s: float) -> sa.Engine:
    """Opens nothing yet. Every statement, connection and lock has a time-out.

    Args:
        url: SQLite's or PostgreSQL's; its password stays out of messages.
        busy_timeout_s: How long a lock of somebody else is waited for.

    Raises:
        AuditError: The driver is not installed.
    """
    try:
        if url.get_backend_name() == "sqlite":
            engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": busy_timeout_s})
            sa.event.listen(engine, "connect", _prepare_sqlite)
            sa.event.listen(engine, "begin", _begin_sqlite)
            return engine
        lock_ms = round(busy_timeout_s * 1000)
        options = f"-c statement_timeout={_STATEMENT_TIMEOUT_MS} -c lock_timeout={lock_ms}"
        given = url.query.get("options")
        if isinstance(given, str):
            options = f"{given} {options}"
        arguments = {
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "options": options,
            "tcp_user_timeout": _STATEMENT_TIMEOUT_MS,
            "application_name": "rlvr-audit",
        }
        return sa.create_engine(
            url.difference_update_query(["options"]), hide_parameters=True, pool_pre_ping=True, connect_args=arguments
        )
    except ModuleNotFoundError as error:
        raise AuditError(f"an audit log in PostgreSQL needs {error.name}: pip install 'rlvr[audit]'") from None
    except NoSuchModuleError as error:
        raise AuditError(str(error)) from None


def _prepare_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves, as sqlite3 would not begin one to read
    connection.text_factory = _decode
    connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
    connection.execute("PRAGMA synchronous=FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    connection.exec_driver_sql(connection.info["begin"])


def _decode(data: bytes) -> str:
    """A manipulated file may hold what is not UTF-8; it has to be found, not to end the search."""
    return data.decode("utf-8", "surrogateescape")


@contextmanager
def translated(name: str) -> Iterator[None]:
    """The database's errors as AuditError, with the log's name."""
    try:
        yield
    except DBAPIError as error:
        raise AuditError(f"audit log {name}: {' '.join(str(error.orig).split())}") from error
    except SQLAlchemyError as error:
        raise AuditError(f"audit log {name}: {error}") from error
