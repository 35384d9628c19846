"""Holding a lease, on a real database."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.database import Database, open_engine, unit_of_work
from app.domain.job import Desired, State, WorkKind
from app.errors import LeaseLost
from app.keys.service import DEFAULT_PROJECT
from app.models.work import Work
from app.serve import prepare
from app.work import repository
from tests.support import settings_in
from worker.lease import Lease

DEADLINE_S = 20.0


@pytest.fixture
def claimed(tmp_path: Path) -> Iterator[tuple[Lease, Database]]:
    """A lease of half a minute that is renewed every few milliseconds."""
    settings = settings_in(tmp_path, lease_s=30, heartbeat_s=0.02)
    prepare(settings)
    database = Database(open_engine(settings.database_url), lambda _: None)
    with unit_of_work(database) as session:
        work = repository.add_work(
            session, kind=WorkKind.VALIDATE_FILE, queue="cpu", project_id=DEFAULT_PROJECT, args={}
        )
        work_id = work.id
    with unit_of_work(database) as session:
        claim = repository.claim(session, work_id, owner="test", lease_ms=30_000)
    assert claim is not None
    lease = Lease(database, settings, claim)
    lease.start()
    yield lease, database
    lease.stop()
    database.engine.dispose()


def wait_for(lease: Lease, condition: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        try:
            lease.check()
        except LeaseLost:
            assert condition == "lost"
            return
        if condition == "cancel" and lease.desired is Desired.CANCEL:
            return
        time.sleep(0.01)
    raise AssertionError(f"the heartbeat did not notice: {condition}")


def test_heartbeat_renews_and_brings_what_the_client_wants(claimed: tuple[Lease, Database]) -> None:
    lease, database = claimed
    with unit_of_work(database) as session:
        before = session.get_one(Work, lease.work_id).lease_until_ms
        repository.set_desired(session, lease.work_id, Desired.CANCEL)
    wait_for(lease, "cancel")
    with unit_of_work(database) as session:
        after = session.get_one(Work, lease.work_id).lease_until_ms
    assert before is not None
    assert after is not None
    assert after > before


def test_owner_that_was_taken_over_is_told_and_fenced(claimed: tuple[Lease, Database]) -> None:
    lease, database = claimed
    with unit_of_work(database) as session:
        assert repository.take_over(session, session.get_one(Work, lease.work_id))
    wait_for(lease, "lost")
    with unit_of_work(database) as session, pytest.raises(LeaseLost):
        lease.load(session)
    with pytest.raises(LeaseLost):
        lease.move(State.RUNNING)


def test_owner_that_leaves_loses_nothing(
    claimed: tuple[Lease, Database], caplog: pytest.LogCaptureFixture
) -> None:
    lease, database = claimed
    lease.leave()
    with unit_of_work(database) as session:
        work = lease.load(session)
        repository.move(session, work, State.QUEUED)
    # A heartbeat comes before the stop, and finds that the work is nobody's.
    lease._threads[0].join(DEADLINE_S)
    assert not lease._threads[0].is_alive()
    lease.check()
    assert "no longer owned" not in caplog.text


def test_silence_for_three_quarters_of_the_lease_counts_as_lost(
    claimed: tuple[Lease, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, _ = claimed
    lease.stop()
    lease.check()
    now = time.monotonic()
    monkeypatch.setattr("worker.lease.time.monotonic", lambda: now + 23)
    with pytest.raises(LeaseLost, match="was lost"):
        lease.check()
