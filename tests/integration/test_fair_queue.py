"""Whose turn it is, between projects and within one."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.database import Database, open_engine, read_only, unit_of_work
from app.domain.job import State, WorkKind
from app.models.base import now_ms, utc_now
from app.models.tenancy import Project, Span
from app.models.work import Work
from app.settings import Settings
from app.work import repository
from app.work.fair_queue import claim_next, list_turns, note_turns
from tests.integration.test_work import at_once
from tests.support import collect, settings_in


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings without limits."""
    return settings_in(tmp_path)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with two projects."""
    database = Database(open_engine(database_url), collect([]))
    with unit_of_work(database) as session:
        for name in ("a", "b"):
            session.add(Project(id=name, name=name, created_at=utc_now()))
    yield database
    database.engine.dispose()


def add(database: Database, name: str, *, priority: int = 0, queue: str = "gpu") -> str:
    """Queue work of the project that its name begins with."""
    with unit_of_work(database) as session:
        return repository.add_work(
            session,
            kind=WorkKind.TRAIN,
            queue=queue,
            project_id=name[0],
            args={},
            work_id=name,
            priority=priority,
        ).id


def claim(database: Database, settings: Settings, queue: str = "gpu") -> str | None:
    """Claim what is next and return its id."""
    work = claim_next(database, settings, queue, owner="test", lease_ms=60_000)
    return None if work is None else work.id


def end(database: Database, work_id: str, seconds: float) -> None:
    """End work as if it had taken so long."""
    with unit_of_work(database) as session:
        work = session.get_one(Work, work_id)
        for state in (State.RUNNING, State.FINALISING, State.SUCCEEDED):
            repository.move(session, work, state)
        span = session.get_one(Span, (work_id, work.epoch))
        span.started_ms = span.until_ms - int(seconds * 1000)


def order(database: Database, settings: Settings) -> list[str]:
    """Return what waits, in its order."""
    with read_only(database) as session:
        return [turn.work_id for turn in list_turns(session, settings, "gpu")]


class TestClaimNext:
    def test_projects_take_turns_however_much_one_queues(
        self, database: Database, settings: Settings
    ) -> None:
        for name in ("a1", "a2", "a3", "a4", "b1", "b2"):
            add(database, name)
        claimed = []
        while (work_id := claim(database, settings)) is not None:
            claimed.append(work_id)
            end(database, work_id, 60)
        assert claimed == ["a1", "b1", "a2", "b2", "a3", "a4"]

    def test_project_that_used_less_lately_goes_first(self, database: Database, settings: Settings) -> None:
        add(database, "a1")
        claim(database, settings)
        end(database, "a1", 100)
        for name in ("a2", "b1", "b2", "b3"):
            add(database, name)
        for name in ("b1", "b2"):
            assert claim(database, settings) == name
            end(database, name, 60)
        assert claim(database, settings) == "a2"

    def test_project_with_less_in_hand_goes_first(self, database: Database, settings: Settings) -> None:
        add(database, "b0")
        claim(database, settings)
        end(database, "b0", 1000)
        for name in ("a1", "a2", "b1"):
            add(database, name)
        assert [claim(database, settings) for _ in range(4)] == ["a1", "b1", "a2", None]

    def test_priority_holds_within_the_project_only(self, database: Database, settings: Settings) -> None:
        add(database, "a1")
        add(database, "a2", priority=10)
        add(database, "a3", priority=-10)
        add(database, "b1", priority=-5)
        claimed = []
        while (work_id := claim(database, settings)) is not None:
            claimed.append(work_id)
            end(database, work_id, 60)
        assert claimed == ["a2", "b1", "a1", "a3"]

    def test_queues_are_apart(self, database: Database, settings: Settings) -> None:
        add(database, "a1", queue="cpu")
        assert claim(database, settings) is None
        assert claim(database, settings, "cpu") == "a1"

    def test_postponed_work_is_passed_over_until_its_time(
        self, database: Database, settings: Settings
    ) -> None:
        add(database, "a1")
        add(database, "a2")
        with unit_of_work(database) as session:
            session.get_one(Work, "a1").not_before_ms = int(time.time() * 1000) + 60_000
        assert claim(database, settings) == "a2"
        assert claim(database, settings) is None
        with unit_of_work(database) as session:
            session.get_one(Work, "a1").not_before_ms = now_ms() - 1
        assert claim(database, settings) == "a1"

    def test_many_workers_claim_each_once(self, database: Database, settings: Settings) -> None:
        names = {add(database, f"{'ab'[index % 2]}{index}") for index in range(6)}
        claimed = at_once(8, lambda _: claim(database, settings))
        assert sorted(each for each in claimed if each is not None) == sorted(names)


class TestTurns:
    def test_order_is_the_one_in_which_work_is_claimed(self, database: Database, settings: Settings) -> None:
        for name, priority in (("a1", 0), ("a2", 3), ("a3", 0), ("b1", 0), ("b2", 1)):
            add(database, name, priority=priority)
        expected = order(database, settings)
        assert len(expected) == 5
        claimed = []
        while (work_id := claim(database, settings)) is not None:
            claimed.append(work_id)
            end(database, work_id, 60)
        assert claimed == expected

    def test_time_is_measured_by_what_ended_and_shared_by_the_workers(
        self, database: Database, settings: Settings
    ) -> None:
        add(database, "a0")
        claim(database, settings)
        end(database, "a0", 120)
        for name in ("a1", "b1", "a2", "b2"):
            add(database, name)
        with unit_of_work(database) as session:
            for worker in ("w1", "w2"):
                repository.record_worker(session, worker_id=worker, queue="gpu", host="here")
        with read_only(database) as session:
            turns = list_turns(session, settings, "gpu")
        assert [turn.waits_for for turn in turns] == [None] * 4
        etas = [turn.eta_ms for turn in turns]
        first = etas[0]
        assert first is not None
        assert abs(first / 1000 - time.time()) < 30
        assert [round(((each or 0) - first) / 1000) for each in etas] == [0, 0, 120, 120]

    def test_without_a_worker_there_is_an_order_and_no_time(
        self, database: Database, settings: Settings
    ) -> None:
        add(database, "a1")
        add(database, "a2")
        note_turns(database, settings, "gpu")
        with read_only(database) as session:
            assert [session.get_one(Work, name).turn for name in ("a1", "a2")] == [
                {
                    "position": index + 1,
                    "ahead_in_project": index,
                    "eta": None,
                    "waits_for": "no worker of the queue is alive",
                }
                for index in range(2)
            ]

    def test_turn_is_forgotten_by_the_claim(self, database: Database, settings: Settings) -> None:
        add(database, "a1")
        note_turns(database, settings, "gpu")
        assert claim(database, settings) == "a1"
        with read_only(database) as session:
            assert session.get_one(Work, "a1").turn is None

    def test_running_work_is_expected_to_end_before_the_next(
        self, database: Database, settings: Settings
    ) -> None:
        settings = settings.model_copy(update={"project_running_jobs": 1})
        add(database, "a0")
        claim(database, settings)
        end(database, "a0", 100)
        for name in ("a1", "a2", "b1"):
            add(database, name)
        with unit_of_work(database) as session:
            for worker in ("w1", "w2", "w3"):
                repository.record_worker(session, worker_id=worker, queue="gpu", host="here")
        assert claim(database, settings) == "b1"
        assert claim(database, settings) == "a1"
        with read_only(database) as session:
            (turn,) = list_turns(session, settings, "gpu")
        assert turn.eta_ms is not None
        assert 90 < turn.eta_ms / 1000 - time.time() < 110
        assert turn.waits_for == "1 jobs of the project run, and its limit is 1"
