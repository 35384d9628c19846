"""The loop that releases what is signed: one row that cannot be understood keeps no other from its release."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.job import State
from app.jobs.repository import list_events
from app.models.job import Job
from app.models.work import Work
from app.notary.service import Notary
from app.storage import Stored
from app.work import repository
from app.work.release import release_approved, release_signed, run_releases
from tests.integration.released import record_end
from tests.integration.test_hang import wait_until
from tests.integration.test_work import at_once, load
from tests.support import add_job, collect, settings_in


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the schema."""
    database = Database(open_engine(database_url), collect([]))
    yield database
    database.engine.dispose()


def sign(database: Database, folder: Path, count: int) -> list[str]:
    """Make jobs whose whole record is signed, and return their ids."""
    ids = [add_job(database, folder) for _ in range(count)]
    for job_id in ids:
        with unit_of_work(database) as session:
            work = repository.claim(session, job_id, owner="test", lease_ms=60_000)
            assert work is not None
            for state in (State.RUNNING, State.FINALISING):
                repository.move(session, work, state)
            record_end(session, work, Stored("b" * 64, 10))
            repository.move(session, work, State.SIGNING)
    Notary(database, settings_in(folder)).attend()
    return ids


def test_one_that_cannot_be_understood_keeps_no_other_waiting(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, broken, last = sign(database, tmp_path, 3)
    with unit_of_work(database) as session:
        # A gate that no version of Tether has written, and no number of a verdict beside it.
        session.execute(
            update(Job).where(Job.id == broken).values(gate={"policy": 1}, gate_result=["nonsense"])
        )
    stop = threading.Event()
    loop = threading.Thread(target=run_releases, args=(database, stop))
    with caplog.at_level(logging.ERROR):
        loop.start()
        try:
            wait_until(lambda: {load(database, each).state for each in (first, last)} == {State.SUCCEEDED})
            assert loop.is_alive()
        finally:
            stop.set()
            loop.join()
    assert load(database, broken).state == State.SIGNING
    assert any(f"{broken} cannot be released" in record.message for record in caplog.records)


def test_held_one_whose_release_cannot_be_understood_keeps_no_other_waiting(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (broken,) = sign(database, tmp_path, 1)
    with unit_of_work(database) as session:
        session.execute(
            update(Work).where(Work.id == broken).values(state=State.HELD, args={"release": "soon"})
        )
    with caplog.at_level(logging.ERROR):
        release_approved(database)
    assert load(database, broken).state == State.HELD
    assert any(broken in record.message for record in caplog.records)


def test_several_at_once_release_once(database: Database, tmp_path: Path) -> None:
    ids = sign(database, tmp_path, 4)
    assert at_once(3, lambda _: release_signed(database)) == [None] * 3
    for job_id in ids:
        assert load(database, job_id).state == State.SUCCEEDED
        with read_only(database) as session:
            job = session.get_one(Job, job_id)
            told = [event.message for event in list_events(session, job, after=None, limit=100)]
        assert told.count("The job has successfully completed") == 1
