"""What the reconciler repairs, on both databases."""

import io
import logging
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from app import storage
from app.audit.repository import append_leaf
from app.audit.service import build_evidence
from app.auth import Caller
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.job import State
from app.domain.verify import verify_bundle
from app.errors import LeaseLost
from app.files.service import add_file
from app.jobs.service import cancel_job
from app.keys.service import DEFAULT_PROJECT
from app.models.base import now_ms, utc_now
from app.models.file import File
from app.models.job import Event, Job
from app.models.reply import Reply
from app.models.tenancy import ApiKey
from app.models.work import Work
from app.reconciler import reconcile, run_reconciler
from app.settings import Settings
from app.work import repository
from app.work.fair_queue import find_next
from app.work.service import postpone
from tests.integration.test_work import at_once, claim, load
from tests.support import add_job, collect, settings_in

EXPIRED = -1


@pytest.fixture
def knocks() -> list[tuple[str, str]]:
    """What was published."""
    return []


@pytest.fixture
def database(database_url: str, knocks: list[tuple[str, str]]) -> Iterator[Database]:
    """A database with the schema."""
    database = Database(open_engine(database_url), collect(knocks))
    yield database
    database.engine.dispose()


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Settings with a budget of three attempts."""
    return settings_in(tmp_path, database_url=database_url, max_attempts_without_progress=3)


@pytest.fixture
def job_id(database: Database, tmp_path: Path, knocks: list[tuple[str, str]]) -> str:
    """A queued job, announced already."""
    made = add_job(database, tmp_path)
    knocks.clear()
    return made


def messages(database: Database, job_id: str) -> list[str]:
    """Return the job's events, oldest first."""
    with read_only(database) as session:
        return list(
            session.scalars(select(Event.message).where(Event.job_id == job_id).order_by(Event.number))
        )


def delete_stored(database: Database, settings: Settings, folder: Path, content: bytes) -> File:
    """Store a file beside a job, and delete it."""
    add_job(database, folder)
    stored = storage.store_stream(settings.storage, io.BytesIO(content))
    with unit_of_work(database) as session:
        file = add_file(
            session, project_id=DEFAULT_PROJECT, filename="rows.jsonl", purpose="fine-tune", stored=stored
        )
        file.deleted_at = utc_now()
    return file


def load_file(database: Database, file_id: str) -> File:
    """Return the row of a file as it stands."""
    with read_only(database) as session:
        return session.get_one(File, file_id)


def verify(database: Database, job_id: str, tmp_path: Path) -> None:
    """Check the job's record as a stranger would."""
    bundle = tmp_path / "evidence.zip"
    with read_only(database) as session:
        bundle.write_bytes(io.BytesIO(build_evidence(session, job_id)).getvalue())
    report = verify_bundle(bundle)
    assert report.exit_code == 0, report.lines()


class TestUnwantedWork:
    def test_cancel_that_no_owner_saw_any_more_is_carried_out(
        self, database: Database, settings: Settings, job_id: str, tmp_path: Path
    ) -> None:
        with unit_of_work(database) as session:
            session.execute(
                update(Work)
                .where(Work.id == job_id)
                .values(desired="cancel", args={"actor": "key_1", "cancelled_by": "key_1"})
            )
        assert claim(database, job_id) is None
        reconcile(database, settings)
        assert load(database, job_id).state == "cancelled"
        verify(database, job_id, tmp_path)


class TestPostpone:
    def test_surroundings_that_fail_cost_no_attempt_and_are_waited_for(
        self, database: Database, settings: Settings, job_id: str, knocks: list[tuple[str, str]]
    ) -> None:
        for failures in range(1, 6):
            owned = claim(database, job_id)
            assert owned is not None, "a budget of three attempts must not be spent"
            with unit_of_work(database) as session:
                postpone(session, settings, session.get_one(Work, job_id), reason="the disk is full")
            work = load(database, job_id)
            assert (work.state, work.infrastructure_failures) == ("queued", failures)
        eager = settings.model_copy(update={"requeue_after_s": 0.0})
        reconcile(database, eager)
        assert knocks == [], "at once would be too soon"
        with unit_of_work(database) as session:
            session.execute(update(Work).values(not_before_ms=0, knocked_at_ms=0))
        reconcile(database, eager)
        assert knocks == [("gpu", job_id)]

    def test_spent_budget_ends_the_job(
        self, database: Database, settings: Settings, job_id: str, tmp_path: Path
    ) -> None:
        assert claim(database, job_id) is not None
        with unit_of_work(database) as session:
            impatient = settings.model_copy(update={"max_infrastructure_failures": 0})
            postpone(session, impatient, session.get_one(Work, job_id), reason="the disk is full")
        work = load(database, job_id)
        assert work.error is not None
        assert (work.state, work.error["code"]) == ("failed", "infrastructure")
        assert "the disk is full" in work.error["message"]
        verify(database, job_id, tmp_path)


class TestExpiredLease:
    def test_work_is_queued_again_and_its_owner_is_fenced(
        self,
        database: Database,
        settings: Settings,
        job_id: str,
        knocks: list[tuple[str, str]],
        tmp_path: Path,
    ) -> None:
        stale = claim(database, job_id, EXPIRED)
        assert stale is not None
        reconcile(database, settings)
        work = load(database, job_id)
        assert (work.state, work.epoch, work.owner, work.lease_until_ms) == ("queued", 2, None, None)
        assert knocks == [("gpu", job_id)]
        assert messages(database, job_id)[-1] == "The job goes back to the queue: its worker fell silent"
        for write in (
            lambda session: repository.renew(session, job_id, stale.epoch, lease_ms=60_000),
            lambda session: repository.move(session, stale, State.RUNNING),
            lambda session: append_leaf(
                session, job_id, epoch=stale.epoch, kind="cmd", body={"command": "cancel", "actor": "key_1"}
            ),
        ):
            with pytest.raises(LeaseLost), unit_of_work(database) as session:
                write(session)
        assert load(database, job_id).ledger_size == 1
        again = claim(database, job_id)
        assert again is not None
        assert (again.epoch, again.attempt) == (3, 2)
        verify(database, job_id, tmp_path)

    def test_living_lease_is_left_alone(
        self, database: Database, settings: Settings, job_id: str, knocks: list[tuple[str, str]]
    ) -> None:
        claim(database, job_id)
        reconcile(database, settings)
        work = load(database, job_id)
        assert (work.state, work.epoch) == ("starting", 1)
        assert knocks == []

    def test_poison_fails_when_its_budget_is_spent(
        self, database: Database, settings: Settings, job_id: str, tmp_path: Path
    ) -> None:
        for attempt in range(1, 4):
            assert load(database, job_id).state == "queued"
            assert claim(database, job_id, EXPIRED) is not None
            assert load(database, job_id).attempts_without_progress == attempt
            reconcile(database, settings)
        work = load(database, job_id)
        assert (work.state, work.attempt, work.owner) == ("failed", 3, None)
        assert work.error is not None
        assert work.error["code"] == "crash_loop"
        assert "3 attempts in a row" in work.error["message"]
        assert work.finished_at is not None
        assert messages(database, job_id)[-1].startswith("The job failed: 3 attempts in a row")
        with read_only(database) as session:
            assert b'"t":"tether.job.end/1"' in build_evidence_leaves(session, job_id)[-1]
        verify(database, job_id, tmp_path)
        assert claim(database, job_id) is None

    def test_progress_starts_the_budget_anew(
        self, database: Database, settings: Settings, job_id: str
    ) -> None:
        for _ in range(5):
            work = claim(database, job_id, EXPIRED)
            assert work is not None
            with unit_of_work(database) as session:
                repository.note_progress(session, job_id, work.epoch)
            reconcile(database, settings)
        assert load(database, job_id).state == "queued"

    def test_cancelled_job_of_a_dead_worker_is_cancelled(
        self, database: Database, settings: Settings, job_id: str, tmp_path: Path
    ) -> None:
        claim(database, job_id, EXPIRED)
        with unit_of_work(database) as session:
            cancel_job(session, Caller(project_id=DEFAULT_PROJECT, key_id="key_1"), job_id)
        assert load(database, job_id).state == "starting"
        reconcile(database, settings)
        work = load(database, job_id)
        assert (work.state, work.error) == ("cancelled", None)
        assert messages(database, job_id)[-1] == "The job was cancelled"
        verify(database, job_id, tmp_path)

    def test_reconcilers_at_once_repair_once(
        self, database: Database, settings: Settings, tmp_path: Path, knocks: list[tuple[str, str]]
    ) -> None:
        ids = [add_job(database, tmp_path) for _ in range(6)]
        for each in ids:
            claim(database, each, EXPIRED)
        knocks.clear()
        assert at_once(3, lambda _: reconcile(database, settings)) == [None] * 3
        for each in ids:
            work = load(database, each)
            assert (work.state, work.epoch) == ("queued", 2)
            assert (
                messages(database, each).count("The job goes back to the queue: its worker fell silent") == 1
            )
        assert sorted(knocks) == sorted(("gpu", each) for each in ids)


def build_evidence_leaves(session: object, job_id: str) -> list[bytes]:
    """Return the leaves of a job."""
    from app.audit.repository import iterate_leaves

    return list(iterate_leaves(session, job_id))  # type: ignore[arg-type]


class TestUnannounced:
    def test_queued_work_is_announced_again(
        self, database: Database, settings: Settings, job_id: str, knocks: list[tuple[str, str]]
    ) -> None:
        reconcile(database, settings)
        assert knocks == []
        with unit_of_work(database) as session:
            session.execute(update(Work).values(knocked_at_ms=Work.knocked_at_ms - 31_000))
        reconcile(database, settings)
        assert knocks == [("gpu", job_id)]
        reconcile(database, settings)
        assert knocks == [("gpu", job_id)]


class TestClockOfTheDatabaseSetBack:
    """Everything that was noted a day ahead was so before the clock was set back by a day."""

    DAY_MS = 86_400_000

    def test_lease_of_a_worker_that_died_then_ends_all_the_same(
        self, database: Database, settings: Settings, job_id: str
    ) -> None:
        claim(database, job_id, lease_ms=self.DAY_MS)
        reconcile(database, settings)
        work = load(database, job_id)
        assert (work.state, work.epoch) == ("starting", 1)
        with read_only(database) as session:
            left_ms = session.scalars(select(Work.lease_until_ms - now_ms()).where(Work.id == job_id)).one()
        assert 0 < left_ms <= settings.lease_s * 1000

    def test_lease_of_a_worker_that_lives_is_left_alone(
        self, database: Database, settings: Settings, job_id: str
    ) -> None:
        claim(database, job_id, lease_ms=int(settings.lease_s * 1000))
        before = load(database, job_id).lease_until_ms
        reconcile(database, settings)
        assert load(database, job_id).lease_until_ms == before

    def test_work_that_waited_then_is_announced_and_may_be_claimed(
        self, database: Database, settings: Settings, job_id: str, knocks: list[tuple[str, str]]
    ) -> None:
        assert claim(database, job_id) is not None
        with unit_of_work(database) as session:
            postpone(session, settings, session.get_one(Work, job_id), reason="the disk is full")
        with read_only(database) as session:
            assert find_next(session, settings, "gpu") is None
        with unit_of_work(database) as session:
            ahead = {"knocked_at_ms": Work.knocked_at_ms + self.DAY_MS}
            session.execute(update(Work).values(not_before_ms=Work.not_before_ms + self.DAY_MS, **ahead))
        reconcile(database, settings)
        assert knocks == [("gpu", job_id)]
        with read_only(database) as session:
            # Announced now, it waits no longer, although it was to wait until tomorrow.
            found = find_next(session, settings, "gpu")
        assert found is not None
        assert found.work_id == job_id


class TestOnePoisonedRow:
    def test_others_are_repaired_all_the_same(
        self,
        database: Database,
        settings: Settings,
        tmp_path: Path,
        knocks: list[tuple[str, str]],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        damaged = add_job(database, tmp_path, file_status="uploaded")
        healthy = add_job(database, tmp_path)
        knocks.clear()
        with unit_of_work(database) as session:
            session.execute(update(Work).values(knocked_at_ms=0))
            job = session.get_one(Job, damaged)
            job.request = {"damaged": True}
            session.connection().exec_driver_sql("UPDATE files SET status = 'processed'")
        reconcile(database, settings)
        assert knocks == [("gpu", healthy)]
        assert load(database, damaged).state == "validating"
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
            f"{damaged} cannot be repaired"
        ]


class TestCleaning:
    def test_bytes_that_cannot_be_removed_keep_nobody_elses(
        self, database: Database, settings: Settings, tmp_path: Path
    ) -> None:
        eager = settings.model_copy(update={"deletion_grace_s": 0.0})
        stuck, loose = (delete_stored(database, eager, tmp_path, content) for content in (b"stuck", b"loose"))
        storage.path_of(eager.storage_dir, stuck.sha256).unlink()
        storage.path_of(eager.storage_dir, stuck.sha256).mkdir()
        stop = threading.Event()
        often = eager.model_copy(update={"reconcile_interval_s": 0.01})
        thread = threading.Thread(target=run_reconciler, args=(database, often, stop))
        thread.start()
        deadline = time.monotonic() + 30
        while load_file(database, loose.id).bytes_removed_at is None and time.monotonic() < deadline:
            time.sleep(0.01)
        alive = thread.is_alive()
        stop.set()
        thread.join(30)
        assert alive
        assert load_file(database, loose.id).bytes_removed_at is not None
        assert load_file(database, stuck.id).bytes_removed_at is None

    def test_step_that_fails_keeps_the_later_ones_from_nothing(
        self, database: Database, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        file = delete_stored(database, settings, tmp_path, b"any")
        with unit_of_work(database) as session:
            long_ago = utc_now() - timedelta(days=40)
            session.execute(update(File).where(File.id == file.id).values(sha256="?", deleted_at=long_ago))
            key_id = session.scalars(select(ApiKey.id)).first()
            assert key_id is not None
            session.add(
                Reply(
                    id="reply_1",
                    api_key_id=key_id,
                    route="x",
                    body_sha256="0" * 64,
                    reply={},
                    created_at=long_ago,
                )
            )
        reconcile(database, settings)
        with read_only(database) as session:
            assert session.get(Reply, "reply_1") is None
        assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
            "remove_deleted_bytes failed; trying again"
        ]


class TestRunReconciler:
    def test_repairs_until_it_is_told_to_stop(
        self, database: Database, settings: Settings, job_id: str
    ) -> None:
        claim(database, job_id, EXPIRED)
        stop = threading.Event()
        often = settings.model_copy(update={"reconcile_interval_s": 0.01})
        thread = threading.Thread(target=run_reconciler, args=(database, often, stop))
        thread.start()
        deadline = time.monotonic() + 30
        while load(database, job_id).state != "queued" and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.set()
        thread.join(30)
        assert load(database, job_id).state == "queued"
        assert not thread.is_alive()
