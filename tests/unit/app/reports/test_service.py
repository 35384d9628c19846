"""How long a job may run, from earlier ones, and what a file is called of which rows were left out."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.database import Database, open_engine, unit_of_work
from app.domain.job import State, WorkKind
from app.jobs.repository import add_event
from app.keys.service import DEFAULT_PROJECT, ensure_project
from app.models.base import utc_now
from app.models.job import Event, Job
from app.models.report import Report
from app.models.work import Work
from app.reports.service import estimate_time, name_kept
from app.work.repository import add_work
from tests.support import add_job, collect

STARTED = utc_now()


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    """A database with the schema."""
    database = Database(open_engine(sqlite_url), collect([]))
    with unit_of_work(database) as session:
        ensure_project(session)
    yield database
    database.engine.dispose()


def add_done(
    database: Database,
    folder: Path,
    *,
    steps: int,
    tokens: int,
    before_s: float,
    step_s: float,
    after_s: float,
    attempt: int = 1,
) -> str:
    """Add a job that has done its steps, and return its base model."""
    job_id = add_job(database, folder)
    with unit_of_work(database) as session:
        job, work = session.get_one(Job, job_id), session.get_one(Work, job_id)
        job.total_steps = job.step = steps
        job.trained_tokens = tokens
        for step in {1, steps}:
            add_event(session, job, "", type="metrics", data={"step": step})
        add_event(session, job, "The job has successfully completed")
        session.flush()
        for event in session.query(Event).where(Event.job_id == job_id, Event.type == "metrics"):
            assert event.data is not None
            event.created_at = STARTED + timedelta(seconds=before_s + step_s * event.data["step"])
        work.state, work.attempt, work.started_at = State.SUCCEEDED, attempt, STARTED
        work.finished_at = STARTED + timedelta(seconds=before_s + step_s * steps + after_s)
        return job.model


def estimate(database: Database, base_model: str, tokens: int) -> dict[str, Any]:
    """Return the estimate for so many trained tokens."""
    with unit_of_work(database) as session:
        work = add_work(
            session,
            kind=WorkKind.REPORT,
            queue="cpu",
            project_id=DEFAULT_PROJECT,
            args={"base_model": base_model},
        )
        body = {"training": {"trained_tokens": tokens}}
        report = Report(
            id=work.id, project_id=DEFAULT_PROJECT, digest=work.id, created_at=utc_now(), body=body
        )
        session.add(report)
        session.flush()
        session.refresh(report)
        return estimate_time(session, report)


class TestEstimateTime:
    def test_start_is_no_part_of_the_pace(self, database: Database, tmp_path: Path) -> None:
        """After a short job most of whose time was its start, a long one was said to take 18 times too long."""
        base = add_done(database, tmp_path, steps=10, tokens=1000, before_s=30, step_s=0.2, after_s=4)
        found = estimate(database, base, 100_000)
        assert found["seconds"] == pytest.approx(34 + 100_000 / 500, abs=0.2)
        assert found["jobs"] == 1
        assert found["reason"].startswith("34.0 s to start and to finish, and 100000 trained tokens at 500.0")

    @pytest.mark.parametrize(("steps", "attempt"), [(1, 1), (10, 2)], ids=["one step", "interrupted"])
    def test_job_that_tells_no_pace_is_left_out(
        self, database: Database, tmp_path: Path, steps: int, attempt: int
    ) -> None:
        numbers = {"tokens": 1000, "before_s": 30, "step_s": 0.2, "after_s": 4}
        base = add_done(database, tmp_path, steps=steps, attempt=attempt, **numbers)  # type: ignore[arg-type]
        found = estimate(database, base, 1000)
        assert found["seconds"] is None
        assert "of several steps" in found["reason"]

    def test_without_jobs_it_says_so(self, database: Database) -> None:
        assert estimate(database, "org/other", 10)["seconds"] is None


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("rows.jsonl", "rows-kept.jsonl"),
        ("rows-kept.jsonl", "rows-kept2.jsonl"),
        ("rows-kept2.jsonl", "rows-kept3.jsonl"),
        ("rows", "rows-kept"),
        ("x" * 255, "x" * 250 + "-kept"),
        ("x" * 249 + ".jsonl", "x" * 244 + "-kept.jsonl"),
    ],
)
def test_name_tells_that_rows_were_left_out(name: str, kept: str) -> None:
    assert name_kept(name) == kept
    assert len(kept) <= 255
