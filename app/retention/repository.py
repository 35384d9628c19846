"""Queries of prunings and legal holds."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, delete, or_, select, update
from sqlalchemy.orm import Session, aliased

from app.domain.job import TERMINAL, WorkKind
from app.models.base import new_id, utc_now
from app.models.evaluation import Evaluation
from app.models.file import File
from app.models.installation_log import InstallationLog, LogEvent
from app.models.job import CurvePiece, Event, Job, LedgerLeaf, RiskRow, Step
from app.models.report import Report
from app.models.retention import LegalHold, PrunedJob
from app.models.work import Work
from app.seat_belts import pruning

_LEAVES = LedgerLeaf.metadata.tables[LedgerLeaf.__tablename__]


# --- prunings ---------------------------------------------------------------------------------------------


def list_ended(session: Session, before: datetime, *, without: Sequence[str]) -> Sequence[Job]:
    """Return the jobs that ended before a time and have no pruning of these scopes, oldest first."""
    pruned = select(PrunedJob.number).where(PrunedJob.job_id == Job.id, PrunedJob.scope.in_(without)).exists()
    return session.scalars(
        select(Job)
        .join(Job.work)
        .where(Work.kind == WorkKind.TRAIN, Work.state.in_(TERMINAL), Work.finished_at < before, ~pruned)
        .order_by(Work.finished_at, Job.id)
    ).all()


def add_pruning(session: Session, job: Job, *, scope: str, pruning: bytes, event: int) -> PrunedJob:
    """Keep what the log was told of a job."""
    added = PrunedJob(
        job_id=job.id, scope=scope, pruning=pruning, event=event, announced_at=utc_now(), done_at=None
    )
    session.add(added)
    session.flush()
    return added


def list_pending(session: Session) -> Sequence[PrunedJob]:
    """Return the prunings that the log was told of and whose bytes are still there, oldest first."""
    return session.scalars(
        select(PrunedJob).where(PrunedJob.done_at.is_(None)).order_by(PrunedJob.number)
    ).all()


def get_newest_done(session: Session, job_id: str) -> PrunedJob | None:
    """Return the pruning that says of everything that is gone of a job; None where nothing is."""
    return session.scalars(
        select(PrunedJob)
        .where(PrunedJob.job_id == job_id, PrunedJob.done_at.is_not(None))
        .order_by(PrunedJob.number.desc())
        .limit(1)
    ).one_or_none()


def list_told_elsewhere(session: Session) -> Sequence[PrunedJob]:
    """Return the prunings that count and that only a log knows that was forked since."""
    newest = select(InstallationLog.number).order_by(InstallationLog.number.desc()).limit(1).scalar_subquery()
    later = aliased(PrunedJob)
    superseded = select(later.number).where(
        later.job_id == PrunedJob.job_id, later.number > PrunedJob.number, later.done_at.is_not(None)
    )
    return session.scalars(
        select(PrunedJob)
        .join(LogEvent, LogEvent.number == PrunedJob.event)
        .where(LogEvent.log.is_not(None), LogEvent.log != newest, ~superseded.exists())
        .order_by(PrunedJob.number)
    ).all()


def replace_leaves(session: Session, job_id: str, lines: Mapping[int, bytes]) -> None:
    """Put these lines in the place of a job's records, by their seq."""
    replace = (
        update(_LEAVES)
        .where(_LEAVES.c.work_id == job_id, _LEAVES.c.seq == bindparam("at"))
        .values(leaf=bindparam("line"))
    )
    with pruning(session):
        session.connection().execute(replace, [{"at": at, "line": line} for at, line in lines.items()])


def forget_steps(session: Session, job_id: str) -> None:
    """Delete what is kept of a job's steps beside the ledger, so that it can be queried."""
    for query in (
        delete(Step).where(Step.job_id == job_id),
        delete(CurvePiece).where(CurvePiece.job_id == job_id),
        delete(Event).where(Event.job_id == job_id, Event.type == "metrics"),
    ):
        session.execute(query)


def forget_rows(session: Session, job_id: str) -> None:
    """Delete a job's risk table and its event log."""
    for query in (
        delete(RiskRow).where(RiskRow.job_id == job_id),
        delete(Event).where(Event.job_id == job_id),
    ):
        session.execute(query)


# --- legal holds ------------------------------------------------------------------------------------------


def add_hold(session: Session, *, project_id: str, job_id: str | None, reason: str) -> LegalHold:
    """Insert a hold."""
    added = LegalHold(
        id=new_id("hold_"),
        project_id=project_id,
        job_id=job_id,
        reason=reason,
        created_at=utc_now(),
        released_at=None,
    )
    session.add(added)
    session.flush()
    return added


def get_hold(session: Session, hold_id: str) -> LegalHold | None:
    """Return a hold, released or not."""
    return session.get(LegalHold, hold_id)


def list_holds(session: Session) -> Sequence[LegalHold]:
    """Return all holds, newest first; released ones too."""
    return session.scalars(select(LegalHold).order_by(LegalHold.created_at.desc(), LegalHold.id)).all()


def find_hold(session: Session, job: Job) -> LegalHold | None:
    """Return a hold that keeps a job as it is."""
    query = _on_jobs(select(LegalHold)).where(Job.id == job.id)
    found: LegalHold | None = session.scalars(query.limit(1)).one_or_none()
    return found


def find_hold_on_file(session: Session, file_id: str) -> LegalHold | None:
    """Return a hold that keeps a file as it is."""
    query = _on_files(select(LegalHold)).where(File.id == file_id)
    found: LegalHold | None = session.scalars(query.limit(1)).one_or_none()
    return found


def is_held_job() -> ColumnElement[bool]:
    """Say of a job that a hold keeps it: its own, or that of its project."""
    return _on_jobs(select(LegalHold.id)).correlate(Job).exists()


def is_held_file() -> ColumnElement[bool]:
    """Say of a file that a hold keeps it: that of its project, or of a job.

    A job's files are those that it learns from and is validated by, its results, and the replies of evaluations of it.
    What was erased before is no hold's any more.
    """
    return _on_files(select(LegalHold.id)).correlate(File).exists()


def _on_jobs(holds: Select[Any]) -> Select[Any]:
    whole_project = and_(LegalHold.job_id.is_(None), LegalHold.project_id == Job.project_id)
    return holds.where(LegalHold.released_at.is_(None), or_(whole_project, LegalHold.job_id == Job.id))


def _on_files(holds: Select[Any]) -> Select[Any]:
    held = aliased(Job)
    return (
        holds.outerjoin(held, held.id == LegalHold.job_id)
        .outerjoin(Evaluation, Evaluation.job_id == LegalHold.job_id)
        .where(
            LegalHold.released_at.is_(None),
            File.erased_at.is_(None),
            or_(
                and_(LegalHold.job_id.is_(None), LegalHold.project_id == File.project_id),
                held.training_file == File.id,
                held.validation_file == File.id,
                LegalHold.job_id == File.job_id,
                Evaluation.replies_file == File.id,
            ),
        )
    )


# --- datasets ---------------------------------------------------------------------------------------------


def list_reports_on(session: Session, file_id: str) -> Sequence[Report]:
    """Return the reports on a file, whether as training or as validation data."""
    return session.scalars(
        select(Report)
        .join(Report.work)
        .where(
            or_(
                Work.args["training_file"].as_string() == file_id,
                Work.args["validation_file"].as_string() == file_id,
            )
        )
    ).all()
