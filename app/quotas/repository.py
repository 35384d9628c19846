"""What a project uses, counted from the rows themselves, so that no counter can go wrong."""

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import Session

from app.domain.job import OWNED, Desired, State, WorkKind
from app.models.base import now_ms
from app.models.evaluation import Evaluation
from app.models.file import File
from app.models.job import Checkpoint, Job
from app.models.tenancy import Span
from app.models.upload import Upload
from app.models.work import Work

GPU = "gpu"
RESULTS = "fine-tune-results"
# A paused job counts: resuming it asks for no room.
WAITING = or_(
    Work.state.in_((State.VALIDATING, State.PAUSED)),
    and_(Work.state == State.QUEUED, Work.desired == Desired.RUN),
)


def sum_storage(session: Session, project_id: str) -> int:
    """Return the bytes of the project's files, of what its uploads announced, and of the weights that it keeps."""
    # The result file that is the adapter is the same bytes as the job's weights; the replies of an evaluation are not.
    replies = select(Evaluation.replies_file).where(Evaluation.project_id == project_id)
    files = select(func.sum(File.size_bytes)).where(
        File.project_id == project_id,
        File.deleted_at.is_(None),
        or_(File.purpose != RESULTS, File.id.in_(replies)),
    )
    uploads = select(func.sum(Upload.size_bytes)).where(
        Upload.project_id == project_id, Upload.status == "pending"
    )
    weights = select(func.sum(Job.adapter_bytes)).where(
        Job.project_id == project_id, Job.model_deleted_at.is_(None)
    )
    # Those of a checkpoint are as large as the job's, which have the same shape.
    checkpoints = (
        select(func.sum(Job.adapter_bytes))
        .join(Checkpoint, Checkpoint.job_id == Job.id)
        .where(Job.project_id == project_id, Checkpoint.adapter_sha256.is_not(None))
        .where(Checkpoint.model_deleted_at.is_(None))
    )
    return sum(int(session.scalars(each).one() or 0) for each in (files, uploads, weights, checkpoints))


def count_waiting(session: Session, project_id: str) -> int:
    """Return how many jobs of the project wait: for their files to be checked, in the queue, or paused."""
    return _count(session, project_id, WAITING)


def count_running(session: Session, project_id: str) -> int:
    """Return how many jobs of the project workers have in hand."""
    return _count(session, project_id, Work.state.in_(OWNED))


def _count(session: Session, project_id: str, condition: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(Work)
    query = query.where(Work.project_id == project_id, Work.kind == WorkKind.TRAIN, condition)
    return session.scalars(query).one()


def count_states(session: Session, project_id: str) -> dict[str, int]:
    """Return how many jobs of the project are in each state."""
    rows = session.execute(
        select(Work.state, func.count())
        .where(Work.project_id == project_id, Work.kind == WorkKind.TRAIN)
        .group_by(Work.state)
    )
    return {str(state): int(count) for state, count in rows}


def sum_tokens(session: Session, project_id: str) -> int:
    """Return the tokens that the project's jobs were trained on."""
    query = select(func.sum(Job.trained_tokens)).where(Job.project_id == project_id)
    return int(session.scalars(query).one() or 0)


def sum_spans(
    session: Session, *, queue: str, since_ms: int, project_id: str | None = None
) -> dict[str, int]:
    """Return by project the milliseconds that workers of a queue spent since a time."""
    begin = case((Span.started_ms < since_ms, since_ms), else_=Span.started_ms)
    query = (
        select(Span.project_id, func.sum(Span.until_ms - begin))
        .where(Span.queue == queue, Span.until_ms > since_ms)
        .group_by(Span.project_id)
    )
    if project_id is not None:
        query = query.where(Span.project_id == project_id)
    return {project: int(spent) for project, spent in session.execute(query)}


def list_spans(
    session: Session, project_id: str, *, queue: str, since_ms: int, until_ms: int
) -> Sequence[tuple[int, int]]:
    """Return from when to when workers of a queue were at work for the project, within a time."""
    query = select(Span.started_ms, Span.until_ms).where(
        Span.project_id == project_id,
        Span.queue == queue,
        Span.until_ms > since_ms,
        Span.started_ms < until_ms,
    )
    return [(max(begin, since_ms), min(end, until_ms)) for begin, end in session.execute(query)]


def read_clock(session: Session) -> int:
    """Return the database's time in milliseconds."""
    return session.scalars(select(now_ms())).one()
