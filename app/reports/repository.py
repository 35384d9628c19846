"""Every query of reports, scoped by project."""

from collections.abc import Iterable, Sequence

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from app.domain.job import TERMINAL, State, WorkKind
from app.models.base import utc_now
from app.models.file import File
from app.models.job import Event, Job
from app.models.report import Report, RiskRead
from app.models.work import Work
from app.retention.repository import is_held_file


def get_report(session: Session, project_id: str, report_id: str) -> Report | None:
    """Return a report of the project."""
    return session.scalars(
        select(Report).where(Report.id == report_id, Report.project_id == project_id)
    ).one_or_none()


def find_report(session: Session, project_id: str, digest: str) -> Report | None:
    """Return the report that was made, or is being made, of exactly these things."""
    return session.scalars(
        select(Report).where(Report.project_id == project_id, Report.digest == digest)
    ).one_or_none()


def find_scored(
    session: Session, project_id: str, *, sha256: str, base_model: str, critic_id: str
) -> Report | None:
    """Return the newest finished report with the risks that a critic measured on these bytes."""
    return session.scalars(
        select(Report)
        .join(Report.work)
        .where(
            Report.project_id == project_id,
            Report.scores.is_not(None),
            Work.args["data_sha256"].as_string() == sha256,
            Work.args["base_model"].as_string() == base_model,
            Work.args["critic"].as_string() == critic_id,
        )
        .order_by(Report.created_at.desc(), Report.id.desc())
        .limit(1)
    ).one_or_none()


def list_orphans(session: Session) -> Sequence[Report]:
    """Return finished reports whose training or validation file was deleted, and neither of them is under a legal hold."""
    files = select(File.id).where(File.deleted_at.is_not(None))
    held = select(File.id).where(is_held_file())
    validation = func.coalesce(Work.args["validation_file"].as_string(), "")
    return session.scalars(
        select(Report)
        .join(Report.work)
        .where(
            Report.body.is_not(None),
            or_(
                Work.args["training_file"].as_string().in_(files),
                Work.args["validation_file"].as_string().in_(files),
            ),
            Work.args["training_file"].as_string().not_in(held),
            validation.not_in(held),
        )
    ).all()


def count_unfinished(session: Session, project_id: str) -> int:
    """Count the reports of the project that wait or are being made."""
    query = select(func.count()).where(
        Work.project_id == project_id, Work.kind == WorkKind.REPORT, Work.state.not_in(TERMINAL)
    )
    return session.scalar(query) or 0


def list_finished_jobs(session: Session, project_id: str, base_model: str, limit: int) -> Sequence[Job]:
    """Return the project's last jobs on a base model that succeeded, newest first."""
    return session.scalars(
        select(Job)
        .join(Job.work)
        .where(Job.project_id == project_id, Job.model == base_model, Work.state == State.SUCCEEDED)
        .order_by(Job.created_at.desc(), Job.id.desc())
        .limit(limit)
    ).all()


def find_measured(session: Session, job_ids: Iterable[str]) -> dict[str, tuple[Event, Event]]:
    """Return the first and the last events of each of these jobs that tell of a step."""
    ends = (
        select(func.min(Event.number), func.max(Event.number))
        .where(Event.job_id.in_(job_ids), Event.type == "metrics")
        .group_by(Event.job_id)
    )
    pairs = [tuple(row) for row in session.execute(ends)]
    wanted = {number for pair in pairs for number in pair}
    events = {each.number: each for each in session.scalars(select(Event).where(Event.number.in_(wanted)))}
    return {events[first].job_id: (events[first], events[last]) for first, last in pairs}


def add_risk_read(session: Session, report: Report, *, key_id: str, visibility: str, use: str) -> None:
    """Note that somebody read or used the risks of rows."""
    session.add(
        RiskRead(
            project_id=report.project_id,
            report_id=report.id,
            key_id=key_id,
            visibility=visibility,
            use=use,
            created_at=utc_now(),
        )
    )
