"""What the database itself refuses, on both of them: to change or drop what is on record, and to wake what has ended."""

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.audit.repository import append_leaf
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.job import TERMINAL, State, WorkKind
from app.keys.service import DEFAULT_PROJECT, ensure_project
from app.migration import migrate
from app.models.attestation import Attestation
from app.models.base import utc_now
from app.models.installation_log import LedgerUnlock, LogCheckpoint, LogEvent, LogHead, LogLeaf
from app.models.job import LedgerLeaf
from app.models.work import Work
from app.notary.service import Notary
from app.seat_belts import KEPT, are_fastened, fasten, pruning, unfasten
from app.work.repository import add_work
from tests.support import collect, settings_in, tampering

ON_RECORD = (LedgerLeaf, LogLeaf, LogHead, LogCheckpoint, LogEvent, Attestation)
CHANGES: list[Callable[[Session], object]] = [
    lambda session: session.execute(update(LedgerLeaf).values(leaf=b"x")),
    lambda session: session.execute(update(LogLeaf).values(leaf=b"x")),
    lambda session: session.execute(update(LogHead).values(made_at_ms=0)),
    lambda session: session.execute(update(LogCheckpoint).values(note="x")),
    lambda session: session.execute(update(LogEvent).values(leaf=b"x")),
    lambda session: session.execute(update(Attestation).values(envelope=b"x")),
]


@pytest.fixture
def database(database_url: str, tmp_path: object) -> Iterator[Database]:
    """A database with a signed job and an act."""
    database = Database(open_engine(database_url), collect([]))
    with unit_of_work(database) as session:
        ensure_project(session)
        work = add_work(session, kind=WorkKind.TRAIN, queue="gpu", project_id=DEFAULT_PROJECT, args={})
        for _ in range(2):
            append_leaf(session, work.id, epoch=0, kind="cmd", body={"command": "pause", "actor": "key_1"})
        session.add(LogEvent(leaf=b"{}"))
        session.add(Attestation(work_id=work.id, envelope=b"{}", key="0a1b2c3d", created_at=utc_now()))
    Notary(database, settings_in(tmp_path, database_url=database_url)).attend()  # type: ignore[arg-type]
    yield database
    database.engine.dispose()


def refused(database: Database, act: Callable[[Session], object], said: str) -> None:
    """Check that the database refuses an act, in these words."""
    with pytest.raises(DBAPIError, match=said), unit_of_work(database) as session:
        act(session)


def test_what_is_on_record_is_neither_changed_nor_dropped(database: Database) -> None:
    for change in CHANGES:
        refused(database, change, "UPDATE of .* is refused: it is on record")
    for table in ON_RECORD:
        refused(
            database, lambda session, each=table: session.execute(delete(each)), "DELETE of .* is refused"
        )
    with read_only(database) as session:
        assert all(session.scalars(select(each)).first() is not None for each in ON_RECORD)


def test_a_table_on_record_is_not_truncated(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no TRUNCATE")
    for table in KEPT:
        truncate = text(f"TRUNCATE {table} CASCADE")
        refused(database, lambda session, each=truncate: session.execute(each), "TRUNCATE of .* is refused")


@pytest.mark.parametrize("ended", sorted(TERMINAL))
def test_work_that_has_ended_stays_ended(database: Database, ended: State) -> None:
    with unit_of_work(database) as session:
        session.execute(update(Work).values(state=ended))
    refused(database, lambda session: session.execute(update(Work).values(state=State.QUEUED)), "stays ended")
    with unit_of_work(database) as session:
        session.execute(update(Work).values(state=ended, owner="nobody"))


def test_only_a_transaction_that_prunes_replaces_a_record_and_only_in_its_place(database: Database) -> None:
    with unit_of_work(database) as session, pruning(session):
        session.execute(update(LedgerLeaf).where(LedgerLeaf.seq == 0).values(leaf=b"pruned"))
    with read_only(database) as session:
        assert session.scalars(select(LedgerLeaf.leaf).where(LedgerLeaf.seq == 0)).one() == b"pruned"
        assert session.scalars(select(LedgerUnlock)).first() is None
    refused(database, CHANGES[0], "is refused")

    def move(session: Session) -> None:
        with pruning(session):
            session.execute(update(LedgerLeaf).where(LedgerLeaf.seq == 0).values(seq=9))

    def drop(session: Session) -> None:
        with pruning(session):
            session.execute(delete(LedgerLeaf))

    refused(database, move, "UPDATE of ledger_leaves is refused")
    refused(database, drop, "DELETE of ledger_leaves is refused")


def test_another_transaction_is_not_let_by_one_that_prunes(database: Database) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    with unit_of_work(database) as one, pruning(one):
        refused(database, CHANGES[0], "is refused")


def test_who_owns_the_database_can_take_them_off_and_they_come_back(database: Database) -> None:
    with tampering(database) as session:
        session.execute(update(LogLeaf).values(leaf=b"x"))
    with database.engine.begin() as connection:
        assert not are_fastened(connection)
        fasten(connection)
        fasten(connection)
        assert are_fastened(connection)
    refused(database, CHANGES[1], "is refused")
    with database.engine.begin() as connection:
        unfasten(connection)
        unfasten(connection)


def test_a_migration_that_changes_nothing_puts_back_what_is_off(database: Database) -> None:
    with tampering(database):
        pass
    migrate(database.engine)
    refused(database, CHANGES[1], "is refused")
    if database.engine.dialect.name == "sqlite":
        return
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE log_leaves DISABLE TRIGGER USER"))
    migrate(database.engine)
    refused(database, CHANGES[1], "is refused")
