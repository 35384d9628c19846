"""Every query of jobs, their events, steps and checkpoints, scoped by project."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from app.domain.ledger import parse_leaf
from app.models.base import new_id, utc_now
from app.models.job import Checkpoint, Event, Job, LedgerLeaf, Step
from app.pages import unknown_cursor


def get_job(session: Session, project_id: str, job_id: str) -> Job | None:
    """Return a job of the project."""
    return session.scalars(select(Job).where(Job.id == job_id, Job.project_id == project_id)).one_or_none()


def load_job(session: Session, job_id: str) -> Job:
    """Return the job of a row of work, for the process that owns it."""
    return session.get_one(Job, job_id, populate_existing=True)


def list_jobs(
    session: Session, project_id: str, *, after: str | None, limit: int, metadata: dict[str, str]
) -> Sequence[Job]:
    """Return up to limit + 1 jobs, newest first, that have all of these metadata."""
    query = select(Job).where(Job.project_id == project_id)
    for key, value in metadata.items():
        query = query.where(Job.job_metadata[key].as_string() == value)
    if after is not None:
        cursor = session.execute(
            select(Job.created_at, Job.id).where(Job.id == after, Job.project_id == project_id)
        ).one_or_none()
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(tuple_(Job.created_at, Job.id) < tuple(cursor))
    return session.scalars(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit + 1)).all()


def add_event(
    session: Session,
    job: Job,
    message: str,
    *,
    level: str = "info",
    type: str = "message",
    data: dict[str, Any] | None = None,
) -> None:
    """Append a line to a job's event log."""
    session.add(
        Event(
            id=new_id("ftevent-"),
            project_id=job.project_id,
            job_id=job.id,
            level=level,
            type=type,
            message=message,
            data=data,
            created_at=utc_now(),
        )
    )


def list_events(session: Session, job: Job, *, after: str | None, limit: int) -> Sequence[Event]:
    """Return up to limit + 1 events, newest first."""
    query = select(Event).where(Event.job_id == job.id)
    if after is not None:
        cursor = session.scalars(
            select(Event.number).where(Event.id == after, Event.job_id == job.id)
        ).one_or_none()
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(Event.number < cursor)
    return session.scalars(query.order_by(Event.number.desc()).limit(limit + 1)).all()


def add_checkpoint(session: Session, job: Job, **values: Any) -> Checkpoint:
    """Insert a checkpoint."""
    checkpoint = Checkpoint(
        id=new_id("ftckpt_"), project_id=job.project_id, job_id=job.id, created_at=utc_now(), **values
    )
    session.add(checkpoint)
    return checkpoint


def list_named_checkpoints(
    session: Session, job: Job, *, after: str | None, limit: int
) -> Sequence[Checkpoint]:
    """Return up to limit + 1 checkpoints that are offered to the client, newest first."""
    query = select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.name.is_not(None))
    if after is not None:
        cursor = session.scalars(
            select(Checkpoint.step).where(Checkpoint.id == after, Checkpoint.job_id == job.id)
        ).one_or_none()
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(Checkpoint.step < cursor)
    return session.scalars(query.order_by(Checkpoint.step.desc()).limit(limit + 1)).all()


def list_resumable(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """Return the checkpoints that are kept to resume from, newest first."""
    return session.scalars(
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.folder.is_not(None))
        .order_by(Checkpoint.step.desc())
    ).all()


def save_step(session: Session, job: Job, step: int, record: dict[str, Any]) -> None:
    """Keep a step's record; a step done again after a crash replaces the one that was lost with it."""
    session.merge(Step(job_id=job.id, project_id=job.project_id, step=step, record=record))


def save_validation(session: Session, job: Job, step: int, validation: dict[str, Any]) -> None:
    """Add a validation to the step after which it was measured."""
    session.get_one(Step, (job.id, step)).validation = validation


def save_drift(session: Session, job: Job, step: int, kl: float | None) -> None:
    """Add the run-level monitor's measurement to the step after which it was made."""
    row = session.get_one(Step, (job.id, step))
    row.record = {**row.record, "drift": kl}


def list_steps(session: Session, job: Job, *, after: int, limit: int | None) -> Sequence[Step]:
    """Return the records after a step, in order; all of them where limit is None."""
    query = select(Step).where(Step.job_id == job.id, Step.step > after).order_by(Step.step)
    return session.scalars(query.limit(limit)).all()


def has_started(session: Session, job_id: str) -> bool:
    """Say whether an earlier attempt of this job got as far as its first record."""
    return session.get_one(Job, job_id).total_steps is not None


def load_created_record(session: Session, job_id: str) -> dict[str, Any]:
    """Return the first record of a job's ledger."""
    return parse_leaf(session.get_one(LedgerLeaf, (job_id, 0)).leaf)
