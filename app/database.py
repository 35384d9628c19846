"""The engine, and the unit of work: the only place that commits, then publishes what was queued."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import psycopg
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DisconnectionError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

Publish = Callable[[list[tuple[str, str]]], None]
"""Takes (queue, work id) pairs; must not raise, because what it announces is already committed."""

BUSY_TIMEOUT_MS = 30_000
IDLE_IN_TRANSACTION_MS = 120_000
"""A process that stands still inside a transaction keeps the rows that it has locked from everybody; its own lease could
not even be taken over. PostgreSQL ends such a transaction after this, unless the URL or the role says otherwise."""
PING_AFTER_S = 1.0
"""A connection that was left for longer may have been lost, with a PostgreSQL that was started again."""

DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeout)
"""What is raised where the database cannot be reached, or ended the connection."""


@dataclass(frozen=True)
class Database:
    """An engine, and where committed work is announced."""

    engine: Engine
    publish: Publish

    @cached_property
    def reader(self) -> Engine:
        """The same engine, for transactions that only read, all of it at one point in time."""
        engine = self.engine.execution_options(read_only=True)
        if engine.dialect.name == "postgresql":
            engine = engine.execution_options(isolation_level="REPEATABLE READ")
        return engine

    @cached_property
    def lazy_writer(self) -> Engine:
        """The same engine, for transactions whose commit does not wait for the disk."""
        return self.engine.execution_options(synchronous=False)


def open_engine(url: str) -> Engine:
    """Return an engine for PostgreSQL (psycopg 3) or SQLite (WAL, one writer at a time)."""
    if url.startswith("postgresql://"):
        url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    if not url.startswith("sqlite"):
        engine = create_engine(url, hide_parameters=True, connect_args={"connect_timeout": 10})
        event.listen(engine, "connect", _prepare_postgresql)
        event.listen(engine, "before_cursor_execute", _choose_format)
        event.listen(engine, "begin", _begin_postgresql)
        event.listen(engine, "rollback", _forget_setting)
        event.listen(engine, "checkin", _note_time)
        event.listen(engine, "checkout", _check_if_idle)
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


def _prepare_postgresql(connection: psycopg.Connection[Any], _record: object) -> None:
    connection.execute(
        "SELECT set_config(name, %s, false) FROM (VALUES ('idle_in_transaction_session_timeout')) AS setting (name)"
        " WHERE current_setting(name) = '0'",
        (str(IDLE_IN_TRANSACTION_MS),),
    )
    connection.commit()


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # Transactions are begun by `_begin_sqlite`, not by the driver, which would begin them too late.
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "foreign_keys=ON",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    # A writer takes the lock at once: upgrading a read to a write fails without waiting when another
    # writer came between.
    options = connection.get_execution_options()
    if not options.get("read_only", False):
        level = "FULL" if options.get("synchronous", True) else "NORMAL"
        # It stays with the connection; no transaction takes it back.
        if connection.info.get("synchronous") != level:
            connection.connection.driver_connection.execute(f"PRAGMA synchronous={level}")
            connection.info["synchronous"] = level
    connection.exec_driver_sql("BEGIN" if options.get("read_only", False) else "BEGIN IMMEDIATE")


def _begin_postgresql(connection: Any) -> None:
    wanted = connection.get_execution_options().get("synchronous", True)
    # It stays with the connection, so that a trainer's steps do not each begin with this statement.
    if connection.info.get("synchronous", True) is not wanted:
        connection.exec_driver_sql(f"SET synchronous_commit TO {'DEFAULT' if wanted else 'off'}")
        connection.info["synchronous"] = wanted


def _forget_setting(connection: Any) -> None:
    # A rollback takes back what was set in its transaction; it is set anew before it matters.
    # Of a connection that was lost nothing is left; asking it would hide how it was lost behind another error.
    if not connection.invalidated and "synchronous" in connection.info:
        connection.info["synchronous"] = None


def _note_time(_connection: object, record: Any) -> None:
    record.info["left_at"] = time.monotonic()


def _check_if_idle(connection: Any, record: Any, _fairy: object) -> None:
    """Replace a connection that broke while nobody used it. One that was used just now is not asked each time."""
    idle_s = time.monotonic() - record.info.get("left_at", float("inf"))
    if idle_s > PING_AFTER_S and not _answers(connection):
        raise DisconnectionError("the connection was lost")


def _answers(connection: psycopg.Connection[Any]) -> bool:
    try:
        # Outside of a transaction, which this must not begin.
        connection.pgconn.exec_(b"")
    except psycopg.Error:
        return False
    return connection.pgconn.status == psycopg.pq.ConnStatus.OK


@contextmanager
def unit_of_work(database: Database, *, synchronous: bool = True) -> Iterator[Session]:
    """Run one transaction: commit at the end, then publish; on any error roll back and publish nothing.

    Without `synchronous` the commit does not wait for the disk: everybody sees it at once, and it survives the end of
    any process, but the machine of the database may forget it when its power fails, as the last of what it was told.
    The next commit that does wait brings everything before it to the disk, too.
    """
    engine = database.engine if synchronous else database.lazy_writer
    with Session(engine, expire_on_commit=False) as session:
        knocks: list[tuple[str, str]] = []
        session.info["knocks"] = knocks
        yield session
        session.commit()
    if knocks:
        database.publish(knocks)


@contextmanager
def read_only(database: Database) -> Iterator[Session]:
    """Run one transaction that only reads, all of it at one point in time; nothing is committed."""
    with Session(database.reader, expire_on_commit=False) as session:
        yield session
