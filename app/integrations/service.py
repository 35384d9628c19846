"""Exports of jobs: each is a piece of work of its own on the cpu queue, and nothing that it does touches the job."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from app import queue
from app.domain.job import WorkKind
from app.errors import InvalidRequest
from app.integrations.schemas import Integration
from app.models.job import Job
from app.settings import Settings
from app.work import repository as work_repository


def check_integrations(settings: Settings, integrations: Sequence[Integration] | None) -> None:
    """Raise InvalidRequest where a job asks for a place that the operator has not named."""
    if integrations and not settings.mlflow_tracking_uri:
        raise InvalidRequest(
            "integrations[0].type: this service has no MLflow server; leave the integration out, or have the operator set"
            " TETHER_MLFLOW_TRACKING_URI",
            param="integrations[0].type",
        )


def start_exports(session: Session, job: Job, integrations: Sequence[Integration] | None) -> None:
    """Note the integrations with the job's work, and announce an export for each."""
    if not integrations:
        return
    wanted = [each.model_dump(exclude_none=True) for each in integrations]
    job.work.args = {**job.work.args, "integrations": wanted}
    for each in wanted:
        work = work_repository.add_work(
            session,
            kind=WorkKind.EXPORT,
            queue="cpu",
            project_id=job.project_id,
            args={"job": job.id, "integration": each, "after": 0, "at_ms": None},
        )
        queue.enqueue(session, work.queue, work.id)
