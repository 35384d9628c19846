"""The lease machine on both databases: one owner at a time, and nobody writes under an epoch that is gone."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from app.audit.repository import append_leaf
from app.auth import Caller
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.job import Desired, State
from app.errors import Conflict, LeaseLost
from app.jobs.service import cancel_job
from app.keys.service import DEFAULT_PROJECT
from app.models.job import LedgerLeaf
from app.models.work import Work
from app.work import repository
from tests.support import add_job, collect

CALLER = Caller(project_id=DEFAULT_PROJECT, key_id="key_1")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the schema."""
    database = Database(open_engine(database_url), collect([]))
    yield database
    database.engine.dispose()


@pytest.fixture
def job_id(database: Database, tmp_path: Path) -> str:
    """A queued job."""
    return add_job(database, tmp_path)


def claim(database: Database, work_id: str, lease_ms: int = 60_000) -> Work | None:
    """Claim in a transaction of its own."""
    with unit_of_work(database) as session:
        return repository.claim(session, work_id, owner="test", lease_ms=lease_ms)


def load(database: Database, work_id: str) -> Work:
    """Return the row as it stands."""
    with read_only(database) as session:
        return session.get_one(Work, work_id)


def at_once(count: int, do: Callable[[int], Any]) -> list[Any]:
    """Call a function in many threads at the same moment and return what each gave, or raised."""
    together = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(index: int) -> None:
        together.wait()
        try:
            results[index] = do(index)
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class TestClaim:
    def test_row_says_who_owns_it(self, database: Database, job_id: str) -> None:
        work = claim(database, job_id)
        assert work is not None
        assert (work.state, work.epoch, work.attempt, work.owner) == ("starting", 1, 1, "test")
        assert work.attempts_without_progress == 1
        assert work.started_at is not None
        with read_only(database) as session:
            assert repository.list_expired(session) == []

    def test_one_of_many_gets_it(self, database: Database, job_id: str) -> None:
        claimed = at_once(8, lambda _: claim(database, job_id))
        assert [work.epoch for work in claimed if work is not None] == [1]
        assert load(database, job_id).attempt == 1

    def test_knock_for_nothing_is_harmless(self, database: Database, job_id: str) -> None:
        assert claim(database, "ftjob-nothing") is None
        assert claim(database, job_id) is not None
        assert claim(database, job_id) is None

    def test_work_that_is_to_be_cancelled_is_not_claimed(self, database: Database, job_id: str) -> None:
        with unit_of_work(database) as session:
            repository.set_desired(session, job_id, Desired.CANCEL)
        assert claim(database, job_id) is None


class TestRenew:
    def test_lease_begins_anew_and_the_wish_is_told(self, database: Database, job_id: str) -> None:
        claim(database, job_id, lease_ms=-1)
        with unit_of_work(database) as session:
            assert [work.id for work in repository.list_expired(session)] == [job_id]
            assert repository.renew(session, job_id, 1, lease_ms=60_000) is Desired.RUN
        with unit_of_work(database) as session:
            assert repository.list_expired(session) == []
            repository.set_desired(session, job_id, Desired.CANCEL)
            assert repository.renew(session, job_id, 1, lease_ms=60_000) is Desired.CANCEL

    @pytest.mark.parametrize("epoch", [0, 2])
    def test_other_epoch_has_no_lease(self, database: Database, job_id: str, epoch: int) -> None:
        claim(database, job_id)
        before = load(database, job_id).lease_until_ms
        with pytest.raises(LeaseLost), unit_of_work(database) as session:
            repository.renew(session, job_id, epoch, lease_ms=120_000)
        assert load(database, job_id).lease_until_ms == before

    def test_work_that_ended_has_no_lease(self, database: Database, job_id: str) -> None:
        work = claim(database, job_id)
        assert work is not None
        with unit_of_work(database) as session:
            repository.move(session, session.get_one(Work, job_id), State.FAILED)
        with pytest.raises(LeaseLost), unit_of_work(database) as session:
            repository.renew(session, job_id, 1, lease_ms=60_000)


class TestMove:
    def test_leaving_the_owner_gives_up_the_lease(self, database: Database, job_id: str) -> None:
        claim(database, job_id)
        with unit_of_work(database) as session:
            repository.move(session, session.get_one(Work, job_id), State.QUEUED)
        work = load(database, job_id)
        assert (work.state, work.owner, work.lease_until_ms) == ("queued", None, None)

    def test_stale_owner_moves_nothing(self, database: Database, job_id: str) -> None:
        stale = claim(database, job_id)
        assert stale is not None
        with unit_of_work(database) as session:
            assert repository.take_over(session, session.get_one(Work, job_id))
        with pytest.raises(LeaseLost), unit_of_work(database) as session:
            repository.move(session, stale, State.RUNNING)
        assert load(database, job_id).state == "starting"

    def test_row_that_was_moved_meanwhile_stays_where_it_is(self, database: Database, job_id: str) -> None:
        claim(database, job_id)
        seen = load(database, job_id)
        with unit_of_work(database) as session:
            repository.move(session, session.get_one(Work, job_id), State.RUNNING)
        with pytest.raises(LeaseLost, match="left starting"), unit_of_work(database) as session:
            repository.move(session, session.merge(seen, load=False), State.FAILED)
        assert load(database, job_id).state == "running"

    def test_arrow_that_does_not_exist_is_an_error(self, database: Database, job_id: str) -> None:
        with pytest.raises(ValueError, match="no transition"), unit_of_work(database) as session:
            repository.move(session, session.get_one(Work, job_id), State.SUCCEEDED)


class TestTakeOver:
    def test_one_of_many_is_quickest(self, database: Database, job_id: str) -> None:
        claim(database, job_id, lease_ms=-1)
        seen = [load(database, job_id) for _ in range(6)]

        def take(index: int) -> bool:
            with unit_of_work(database) as session:
                return repository.take_over(session, session.merge(seen[index], load=False))

        assert sorted(at_once(6, take)) == [False] * 5 + [True]
        assert load(database, job_id).epoch == 2


class TestAppendLeaf:
    def test_stale_owner_records_nothing(self, database: Database, job_id: str) -> None:
        claim(database, job_id)
        with unit_of_work(database) as session:
            repository.take_over(session, session.get_one(Work, job_id))
        before = load(database, job_id)
        with pytest.raises(LeaseLost, match="nothing was recorded"), unit_of_work(database) as session:
            self._append(session, job_id, epoch=1)
        after = load(database, job_id)
        assert (
            (after.ledger_size, after.ledger_head)
            == (before.ledger_size, before.ledger_head)
            == (1, after.ledger_head)
        )
        assert self._count(database, job_id) == 1

    def test_rolled_back_leaf_leaves_no_gap(self, database: Database, job_id: str) -> None:
        claim(database, job_id)
        with pytest.raises(ZeroDivisionError), unit_of_work(database) as session:
            self._append(session, job_id, epoch=1)
            raise ZeroDivisionError
        with unit_of_work(database) as session:
            self._append(session, job_id, epoch=1)
        assert self._count(database, job_id) == load(database, job_id).ledger_size == 2

    def test_writers_at_once_make_one_chain(self, database: Database, job_id: str) -> None:
        claim(database, job_id)

        def append(_: int) -> None:
            with unit_of_work(database) as session:
                self._append(session, job_id, epoch=1)

        failed = [each for each in at_once(6, append) if each is not None]
        assert all(isinstance(each, LeaseLost) for each in failed), failed
        size = load(database, job_id).ledger_size
        assert size == 1 + 6 - len(failed)
        with read_only(database) as session:
            found = session.scalars(
                select(LedgerLeaf.seq).where(LedgerLeaf.work_id == job_id).order_by(LedgerLeaf.seq)
            ).all()
        assert list(found) == list(range(size))

    @staticmethod
    def _append(session: Any, job_id: str, *, epoch: int) -> None:
        append_leaf(session, job_id, epoch=epoch, kind="cmd", body={"command": "cancel", "actor": "key_1"})

    @staticmethod
    def _count(database: Database, job_id: str) -> int:
        with read_only(database) as session:
            return session.execute(
                select(func.count()).select_from(LedgerLeaf).where(LedgerLeaf.work_id == job_id)
            ).scalar_one()


class TestCancelRaces:
    def test_cancel_and_claim_at_once(self, database: Database, tmp_path: Path) -> None:
        for _ in range(6):
            work_id = add_job(database, tmp_path)

            def act(index: int, work_id: str = work_id) -> Any:
                if index:
                    return claim(database, work_id)
                with unit_of_work(database) as session:
                    return cancel_job(session, CALLER, work_id).work.state

            cancelled, claimed = at_once(2, act)
            work = load(database, work_id)
            if claimed is None:
                assert (cancelled, work.state) == ("cancelled", "cancelled")
            elif work.state == "cancelled":
                # It was claimed a moment before, and the claim is fenced.
                assert work.epoch > claimed.epoch
            else:
                assert (work.state, work.desired) == ("starting", "cancel")

    def test_cancel_that_comes_too_late_is_a_conflict(self, database: Database, job_id: str) -> None:
        claim(database, job_id)
        raised: list[BaseException] = []

        def cancel() -> None:
            try:
                with unit_of_work(database) as session:
                    cancel_job(session, CALLER, job_id)
            except Conflict as error:
                raised.append(error)

        thread = threading.Thread(target=cancel)
        with unit_of_work(database) as owner:
            repository.move(owner, owner.get_one(Work, job_id), State.FAILED)
            thread.start()
            if database.engine.dialect.name == "postgresql":
                # The request has read the row as it was, and now waits for the owner's lock on it.
                waiting = text(
                    "SELECT count(*) FROM pg_stat_activity WHERE :owner = ANY (pg_blocking_pids(pid))"
                )
                pid = owner.execute(text("SELECT pg_backend_pid()")).scalar_one()
                deadline = time.monotonic() + 30
                while True:
                    # Each look is a transaction of its own: within one, the list of backends stands still.
                    with read_only(database) as session:
                        if session.execute(waiting, {"owner": pid}).scalar_one():
                            break
                    assert time.monotonic() < deadline, "the cancellation did not wait for the owner"
                    time.sleep(0.01)
        thread.join()
        assert len(raised) == 1
        work = load(database, job_id)
        assert (work.state, work.desired) == ("failed", "run")


class TestWorkers:
    def test_queues_live_as_long_as_their_workers_are_seen(self, database: Database) -> None:
        with unit_of_work(database) as session:
            for _ in range(2):
                repository.record_worker(session, worker_id="worker-1", queue="gpu", host="here")
                session.flush()
            assert repository.list_live_queues(session, 30_000) == {"gpu"}
            assert repository.list_live_queues(session, -1) == set()
            repository.remove_worker(session, "worker-1")
            repository.remove_worker(session, "worker-nobody")
            session.flush()
            assert repository.list_live_queues(session, 30_000) == set()


class TestNoteProgress:
    def test_only_the_owner_starts_the_count_anew(self, database: Database, job_id: str) -> None:
        claim(database, job_id)
        for epoch, count in ((2, 1), (1, 0)):
            with unit_of_work(database) as session:
                repository.note_progress(session, job_id, epoch)
            assert load(database, job_id).attempts_without_progress == count
