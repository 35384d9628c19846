"""What a project may not do because of its limits.

Each check locks the project's row first and counts then, in the transaction that adds what was asked for: two
requests at once cannot both take the last place.
"""

from datetime import UTC, datetime

from sqlalchemy.orm import Session

from app.errors import QuotaExceeded
from app.models.tenancy import Project
from app.projects.service import get_project
from app.quotas import repository
from app.quotas.limits import Limits, limits_of
from app.settings import Settings

HOW_TO_RAISE = "an operator can raise the limit: PATCH /v1/projects/{project_id}"


def take_storage(
    session: Session, settings: Settings, project_id: str, size_bytes: int, *, lock: bool = True
) -> None:
    """Make sure that the project has room for so many bytes more. Raises QuotaExceeded.

    Without `lock` it is only an early look, which proves nothing.
    """
    project = get_project(session, project_id, lock=lock)
    limit = limits_of(project, settings).storage_bytes
    if not limit:
        return
    used = repository.sum_storage(session, project_id)
    if used + size_bytes > limit:
        raise _refuse(
            project,
            f"the project keeps {used} of its {limit} bytes, and {size_bytes} more do not fit; delete files that"
            " are not needed",
        )


def take_place_in_queue(session: Session, settings: Settings, project_id: str) -> None:
    """Make sure that one more job of the project may wait, and that it has GPU time left. Raises QuotaExceeded."""
    project = get_project(session, project_id, lock=True)
    limits = limits_of(project, settings)
    if limits.queued_jobs:
        waiting = repository.count_waiting(session, project_id)
        if waiting >= limits.queued_jobs:
            raise _refuse(
                project,
                f"{waiting} jobs of the project wait, and its limit is {limits.queued_jobs}; cancel some",
            )
    reason = lacks_gpu_time(session, project_id, limits)
    if reason is not None:
        raise _refuse(project, reason)


def lacks_gpu_time(session: Session, project_id: str, limits: Limits) -> str | None:
    """Return why no job of the project may start because of its GPU time, if so."""
    if not limits.gpu_seconds:
        return None
    month = month_of(repository.read_clock(session))
    since_ms = to_ms(month)
    spent = repository.sum_spans(session, queue=repository.GPU, since_ms=since_ms, project_id=project_id)
    used = spent.get(project_id, 0) // 1000
    if used < limits.gpu_seconds:
        return None
    return (
        f"the project has used {used} of the {limits.gpu_seconds} GPU seconds that it has in {month:%Y-%m}; wait for the"
        " next month (UTC)"
    )


def lacks_running_place(session: Session, project_id: str, limits: Limits) -> str | None:
    """Return why no job of the project may start because of those that run, if so."""
    if not limits.running_jobs:
        return None
    running = repository.count_running(session, project_id)
    if running < limits.running_jobs:
        return None
    return f"{running} jobs of the project run, and its limit is {limits.running_jobs}"


def month_of(time_ms: int) -> datetime:
    """Return the beginning of the month (UTC) in which a time lies."""
    now = datetime.fromtimestamp(time_ms / 1000, UTC)
    return datetime(now.year, now.month, 1, tzinfo=UTC)


def to_ms(time: datetime) -> int:
    """Return a time in milliseconds since 1970."""
    return int(time.timestamp() * 1000)


def _refuse(project: Project, message: str) -> QuotaExceeded:
    return QuotaExceeded(f"{message}, or {HOW_TO_RAISE.format(project_id=project.id)}")
