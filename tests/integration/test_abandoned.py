"""A process that is killed at its work: who sees it die gives the work back, long before its lease runs out."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from app.audit.repository import append_leaf
from app.auth import Caller
from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.job import State
from app.errors import LeaseLost
from app.jobs.service import cancel_job
from app.keys.service import DEFAULT_PROJECT
from app.models.work import Work
from app.settings import Settings
from app.work import repository
from app.work.fair_queue import find_next
from tests.support import add_job, collect, settings_in
from worker import tasks
from worker.abandoned import give_back
from worker.tasks import Processes

LEASE_MS = 600_000
DIE = """
import os, signal, sys
from app.database import Database, open_engine, unit_of_work
from app.work.repository import claim
with unit_of_work(Database(open_engine(sys.argv[1]), lambda knocks: None)) as session:
    assert claim(session, sys.argv[2], owner=sys.argv[3], lease_ms=int(sys.argv[4])) is not None
os.kill(os.getpid(), signal.SIGKILL)
"""
"""A trainer that claims its work and is killed."""


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
    """Settings with a budget of two attempts."""
    return settings_in(tmp_path, database_url=database_url, max_attempts_without_progress=2)


@pytest.fixture
def job_id(database: Database, tmp_path: Path, knocks: list[tuple[str, str]]) -> str:
    """A queued job, announced already."""
    made = add_job(database, tmp_path)
    knocks.clear()
    return made


def load(database: Database, work_id: str) -> Work:
    """Return the row as it stands."""
    with read_only(database) as session:
        return session.get_one(Work, work_id)


def claim(database: Database, work_id: str, owner: str) -> int:
    """Claim for somebody, and return the epoch."""
    with unit_of_work(database) as session:
        work = repository.claim(session, work_id, owner=owner, lease_ms=LEASE_MS)
        assert work is not None
        return work.epoch


class TestKilledProcess:
    def test_its_work_is_claimed_again_at_once(
        self,
        database: Database,
        settings: Settings,
        job_id: str,
        knocks: list[tuple[str, str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        ended: list[float] = []

        def start(_queue: str, environment: dict[str, str], owner: str) -> "subprocess.Popen[bytes]":
            command = [sys.executable, "-c", DIE, settings.database_url, job_id, owner, str(LEASE_MS)]
            process = subprocess.Popen(command, env={**os.environ, **environment})
            assert process.wait() == -signal.SIGKILL
            ended.append(time.monotonic())
            assert load(database, job_id).state == State.STARTING
            return process

        def has_work() -> bool:
            with read_only(database) as session:
                return find_next(session, settings, "gpu") is not None

        monkeypatch.setattr(tasks, "start_process", start)
        Processes(settings, "gpu", has_work, partial(give_back, database, settings), lambda _: True).wake(
            job_id
        )
        took_s = time.monotonic() - ended[0]
        work = load(database, job_id)
        assert (work.state, work.owner, work.epoch, work.attempts_without_progress) == ("queued", None, 2, 1)
        assert knocks == [("gpu", job_id)]
        assert claim(database, job_id, "next") == 3
        assert took_s < LEASE_MS / 1000 / 10

    def test_what_may_still_live_of_it_is_fenced(
        self, database: Database, settings: Settings, job_id: str
    ) -> None:
        epoch = claim(database, job_id, "dead")
        give_back(database, settings, "dead", "its process was killed by signal 9")
        with pytest.raises(LeaseLost), unit_of_work(database) as session:
            append_leaf(
                session, job_id, epoch=epoch, kind="cmd", body={"command": "cancel", "actor": "key_1"}
            )

    def test_its_budget_ends(self, database: Database, settings: Settings, job_id: str) -> None:
        for _ in range(2):
            claim(database, job_id, "dead")
            give_back(database, settings, "dead", "its process was killed by signal 9")
        work = load(database, job_id)
        assert work.state == State.FAILED
        assert work.error is not None
        assert work.error["code"] == "crash_loop"
        assert "killed by signal 9" in work.error["message"]


class TestKilledForWantOfMemory:
    REASON = "its process was killed by signal 9"

    def test_its_work_goes_on_in_smaller_micro_batches_once(
        self, database: Database, settings: Settings, job_id: str, knocks: list[tuple[str, str]]
    ) -> None:
        claim(database, job_id, "dead")
        give_back(database, settings, "dead", self.REASON, out_of_memory=True)
        work = load(database, job_id)
        assert (work.state, work.args["split"], work.attempts_without_progress) == ("queued", 2, 0)
        assert knocks == [("gpu", job_id)]
        claim(database, job_id, "dead")
        give_back(database, settings, "dead", self.REASON, out_of_memory=True)
        work = load(database, job_id)
        assert work.error is not None
        assert (work.state, work.error["code"]) == ("failed", "out_of_memory")
        assert self.REASON in work.error["message"]

    def test_job_that_is_to_be_cancelled_is(
        self, database: Database, settings: Settings, job_id: str
    ) -> None:
        claim(database, job_id, "dead")
        with unit_of_work(database) as session:
            cancel_job(session, Caller(project_id=DEFAULT_PROJECT, key_id="key_1"), job_id)
        give_back(database, settings, "dead", self.REASON, out_of_memory=True)
        assert load(database, job_id).state == "cancelled"


class TestPoison:
    def test_others_come_before_its_third_attempt(
        self, database: Database, settings: Settings, job_id: str, tmp_path: Path
    ) -> None:
        patient = settings.model_copy(update={"max_attempts_without_progress": 3})
        other = add_job(database, tmp_path)
        with read_only(database) as session:
            first = find_next(session, patient, "gpu")
        assert first is not None
        assert first.work_id == job_id, "the older one"
        for turn in (job_id, other):
            claim(database, job_id, "dead")
            give_back(database, patient, "dead", "its process was killed by signal 11")
            with read_only(database) as session:
                found = find_next(session, patient, "gpu")
            assert found is not None
            # One crash may be anybody's, and it is tried again at once. After two in a row it waits.
            assert found.work_id == turn


class TestGiveBack:
    def test_work_of_another_is_left_alone(self, database: Database, settings: Settings, job_id: str) -> None:
        epoch = claim(database, job_id, "alive")
        give_back(database, settings, "dead", "its process ended with code 1")
        assert (load(database, job_id).epoch, load(database, job_id).owner) == (epoch, "alive")

    def test_work_that_another_has_by_now_is_left_alone(self, database: Database, job_id: str) -> None:
        claim(database, job_id, "dead")
        with read_only(database) as session:
            seen = session.get_one(Work, job_id)
        with unit_of_work(database) as session:
            assert repository.take_over_from(session, session.get_one(Work, job_id), "dead")
        with unit_of_work(database) as session:
            assert not repository.take_over_from(session, session.merge(seen, load=False), "dead")
        assert load(database, job_id).epoch == 2
