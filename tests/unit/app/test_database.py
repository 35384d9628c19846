"""The unit of work: what is committed, what is published, and that writers wait for each other."""

import threading
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from app.database import Database, open_engine, read_only, unit_of_work
from app.queue import enqueue


class Observer:
    """A `Publish` that looks, from a connection of its own, at what is committed when it is called."""

    def __init__(self) -> None:
        self.database: Database | None = None
        self.seen: list[tuple[list[tuple[str, str]], int]] = []

    def __call__(self, knocks: list[tuple[str, str]]) -> None:
        assert self.database is not None
        with read_only(self.database) as session:
            self.seen.append((knocks, count(session)))


def count(session: Session) -> int:
    """Return the number of rows."""
    return int(session.execute(text("SELECT count(*) FROM things")).scalar_one())


@pytest.fixture
def observer() -> Observer:
    """See Observer."""
    return Observer()


@pytest.fixture
def database(empty_database_url: str, observer: Observer) -> Iterator[Database]:
    """A database with one table."""
    database = Database(open_engine(empty_database_url), observer)
    observer.database = database
    with unit_of_work(database) as session:
        session.execute(text("CREATE TABLE things (n INTEGER)"))
    yield database
    database.engine.dispose()


class TestUnitOfWork:
    def test_commits_and_then_publishes_once(self, database: Database, observer: Observer) -> None:
        with unit_of_work(database) as session:
            session.execute(text("INSERT INTO things VALUES (1)"))
            enqueue(session, "gpu", "ftjob-1")
            enqueue(session, "cpu", "work-2")
            assert observer.seen == []
        assert observer.seen == [([("gpu", "ftjob-1"), ("cpu", "work-2")], 1)]

    def test_error_rolls_back_and_publishes_nothing(self, database: Database, observer: Observer) -> None:
        with pytest.raises(ZeroDivisionError), unit_of_work(database) as session:
            session.execute(text("INSERT INTO things VALUES (1)"))
            enqueue(session, "gpu", "ftjob-1")
            raise ZeroDivisionError
        with read_only(database) as session:
            assert count(session) == 0
        assert observer.seen == []

    def test_failed_commit_publishes_nothing(self, database: Database, observer: Observer) -> None:
        # A deferred constraint speaks up only at the commit itself.
        with unit_of_work(database) as session:
            session.execute(text("CREATE TABLE parents (id INTEGER PRIMARY KEY)"))
            session.execute(
                text(
                    "CREATE TABLE children (parent INTEGER REFERENCES parents (id)"
                    " DEFERRABLE INITIALLY DEFERRED)"
                )
            )
        with pytest.raises(DBAPIError), unit_of_work(database) as session:
            session.execute(text("INSERT INTO children VALUES (7)"))
            enqueue(session, "gpu", "ftjob-1")
        assert observer.seen == []

    def test_nothing_queued_is_nothing_published(self, database: Database, observer: Observer) -> None:
        with unit_of_work(database) as session:
            session.execute(text("INSERT INTO things VALUES (1)"))
        assert observer.seen == []

    def test_concurrent_writers_wait_for_each_other(self, database: Database) -> None:
        # Each reads before it writes: begun late, SQLite would refuse the second writer at once.
        together = threading.Barrier(4)
        failed: list[BaseException] = []

        def write() -> None:
            together.wait()
            try:
                for _ in range(15):
                    with unit_of_work(database) as session:
                        found = count(session)
                        session.execute(text("INSERT INTO things VALUES (:n)"), {"n": found})
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        with read_only(database) as session:
            assert count(session) == 60


def waits_for_the_disk(session: Session) -> bool:
    """Say whether the commit of a transaction will."""
    if session.get_bind().dialect.name == "sqlite":
        return int(session.execute(text("PRAGMA synchronous")).scalar_one()) == 2
    return session.execute(text("SHOW synchronous_commit")).scalar_one() == "on"


class TestSynchronous:
    def test_only_a_transaction_that_says_so_does_not_wait_for_the_disk(self, database: Database) -> None:
        # One after the other, they have the same connection.
        found = []
        for synchronous in (True, False, False, True, False):
            with unit_of_work(database, synchronous=synchronous) as session:
                found.append(waits_for_the_disk(session))
        assert found == [True, False, False, True, False]

    @pytest.mark.parametrize("synchronous", [True, False])
    def test_a_rollback_leaves_nothing_of_it(self, database: Database, synchronous: bool) -> None:
        with unit_of_work(database, synchronous=not synchronous):
            pass
        with pytest.raises(ZeroDivisionError), unit_of_work(database, synchronous=synchronous) as session:
            waits_for_the_disk(session)
            raise ZeroDivisionError
        with unit_of_work(database, synchronous=synchronous) as session:
            assert waits_for_the_disk(session) is synchronous

    def test_everybody_sees_it_at_once(self, database: Database) -> None:
        with unit_of_work(database, synchronous=False) as session:
            session.execute(text("INSERT INTO things VALUES (1)"))
        with read_only(database) as session:
            assert count(session) == 1


class TestReadOnly:
    def test_nothing_is_committed(self, database: Database) -> None:
        with read_only(database) as session:
            session.execute(text("INSERT INTO things VALUES (1)"))
        with read_only(database) as session:
            assert count(session) == 0

    def test_reader_does_not_wait_for_a_writer(self, database: Database) -> None:
        with unit_of_work(database) as writer:
            writer.execute(text("INSERT INTO things VALUES (1)"))
            with read_only(database) as session:
                assert count(session) == 0


class TestOpenEngine:
    def test_sqlite_is_durable_and_checks_foreign_keys(self, database: Database) -> None:
        if database.engine.dialect.name != "sqlite":
            pytest.skip("about SQLite")
        with read_only(database) as session:
            found = {
                name: session.execute(text(f"PRAGMA {name}")).scalar_one()
                for name in ("journal_mode", "synchronous", "foreign_keys")
            }
        assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}

    def test_a_connection_that_was_lost_while_nobody_used_it_is_replaced(
        self, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if database.engine.dialect.name != "postgresql":
            pytest.skip("about PostgreSQL")
        monkeypatch.setattr("app.database.PING_AFTER_S", 0.0)
        with unit_of_work(database) as session, unit_of_work(database) as other:
            lost = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
            other.execute(text("SELECT 1"))
        with database.engine.connect() as connection:
            # Of the two that lie in the pool, the newer one ends the older one.
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            assert pid != lost
            connection.execute(text("SELECT pg_terminate_backend(:lost)"), {"lost": lost})
            with unit_of_work(database) as session:
                assert session.execute(text("SELECT pg_backend_pid()")).scalar_one() not in (pid, lost)

    def test_a_transaction_in_which_nothing_happens_is_ended_by_the_server(
        self, database: Database, empty_database_url: str
    ) -> None:
        if database.engine.dialect.name != "postgresql":
            pytest.skip("about PostgreSQL")
        setting = text("SELECT current_setting('idle_in_transaction_session_timeout')")
        with read_only(database) as session:
            assert session.execute(setting).scalar_one() == "2min"
        # What the operator says in the URL counts.
        impatient = open_engine(f"{empty_database_url}%20-cidle_in_transaction_session_timeout%3D200")
        with pytest.raises(DBAPIError), impatient.connect() as connection:
            assert connection.execute(setting).scalar_one() == "200ms"
            time.sleep(1)
            connection.execute(setting)
        impatient.dispose()
