"""The engine, and the unit of work: the only place that commits, then publishes what was queued."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session

Publish = Callable[[list[tuple[str, str]]], None]
"""Takes (queue, work id) pairs; must not raise, because what it announces is already committed."""

BUSY_TIMEOUT_MS = 30_000


@dataclass(frozen=True, slots=True)
class Database:
    """An engine, and where committed work is announced."""

    engine: Engine
    publish: Publish


def open_engine(url: str) -> Engine:
    """Return an engine for PostgreSQL (psycopg 3) or SQLite (WAL, one writer at a time)."""
    if url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    if not url.startswith("sqlite"):
        engine = create_engine(
            url, pool_pre_ping=True, hide_parameters=True, connect_args={"connect_timeout": 10}
        )
        event.listen(engine, "before_cursor_execute", _choose_format)
        return engine
    # Parameters hold keys and digests, which have no place in a log.
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _choose_format(
    _connection: object, cursor: Any, _statement: str, _parameters: object, context: Any, _many: bool
) -> None:
    # Bytes come as hexadecimal text unless one asks for better; that takes three times as long for megabytes.
    if context is not None and context.execution_options.get("large_bytes"):
        cursor.format = psycopg.pq.Format.BINARY


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # Transactions are begun by `_begin_sqlite`, not by the driver, which would begin them too late.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    # A writer takes the lock at once: upgrading a read to a write fails without waiting when another
    # writer came between.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


@contextmanager
def unit_of_work(database: Database) -> Iterator[Session]:
    """Run one transaction: commit at the end, then publish; on any error roll back and publish nothing."""
    with Session(database.engine, expire_on_commit=False) as session:
        knocks: list[tuple[str, str]] = []
        session.info["knocks"] = knocks
        yield session
        session.commit()
    if knocks:
        database.publish(knocks)


@contextmanager
def read_only(database: Database) -> Iterator[Session]:
    """Run one transaction that only reads, all of it at one point in time; nothing is committed."""
    engine = database.engine.execution_options(read_only=True)
    if engine.dialect.name == "postgresql":
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with Session(engine, expire_on_commit=False) as session:
        yield session
