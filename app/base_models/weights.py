"""The weights of fine-tuned models: who may have them, and when they go."""

from datetime import timedelta

from sqlalchemy.orm import Session

from app.base_models import repository
from app.base_models.tuned import TunedModel
from app.database import Database, read_only, unit_of_work
from app.domain.job import State
from app.errors import Conflict, NotFound, PermissionDenied
from app.files.repository import get_file
from app.files.service import let_go, refuse_held
from app.jobs.repository import add_event
from app.models.base import utc_now
from app.models.job import Checkpoint, Job
from app.notary.repository import add_event as note_act
from app.retention.repository import find_hold
from app.settings import Settings


def get_tuned_model(session: Session, project_id: str, name: str) -> TunedModel:
    """Return a model or checkpoint that the project may use. Raises NotFound."""
    found = repository.get_tuned_model(session, project_id, name)
    if found is None:
        raise NotFound(
            f"the model {name!r} does not exist or belongs to another project",
            param="model",
            code="model_not_found",
        )
    return found


def find_adapter(session: Session, project_id: str, job_id: str, checkpoint_id: str | None = None) -> str:
    """Return where the adapter of a job, or of a checkpoint, is stored. Raises NotFound, or Conflict before release."""
    found = repository.get_weights(session, project_id, job_id, checkpoint_id)
    what = f"the job {job_id}" if checkpoint_id is None else f"the checkpoint {checkpoint_id}"
    if found is None and checkpoint_id is None:
        raise NotFound(
            f"no fine-tuning job has the id {job_id!r} in this project", param="fine_tuning_job_id"
        )
    if found is None:
        raise NotFound(
            f"the job {job_id!r} has no checkpoint {checkpoint_id!r} in this project", param="checkpoint_id"
        )
    if found.model_deleted_at is not None:
        raise NotFound(
            f"the model {found.name} was deleted at {found.model_deleted_at:%Y-%m-%d %H:%M:%S} UTC, and its weights with"
            " it; the record of its job stays",
            param="model",
            code="model_deleted",
        )
    state = found.job.work.state
    if state == State.HELD:
        raise Conflict(
            f"{what} has no adapter to download: the gate of the operator's policy holds the job {job_id}. Its"
            " `safety.gate` says why; a key with the scope 'jobs:release' releases it with POST"
            f" /v1/fine_tuning/jobs/{job_id}/release, or rejects it",
            code="job_held",
        )
    if state != State.SUCCEEDED:
        raise Conflict(
            f"{what} has no adapter to download: the job's state is {state}; an adapter is released when the job has"
            " succeeded",
            code="adapter_not_ready",
        )
    if found.adapter_sha256 is None:
        raise Conflict(
            f"{what} has no adapter to download: it was made by a version of Tether that did not keep it",
            code="adapter_not_kept",
        )
    return found.adapter_sha256


def delete_tuned_model(session: Session, project_id: str, name: str, *, actor: str) -> None:
    """Delete a model or checkpoint of the project; its weights go a while later.

    Raises NotFound, PermissionDenied, and Conflict where a legal hold keeps its job.
    """
    if repository.get_base_model(session, name) is not None:
        raise PermissionDenied(
            f"{name!r} is a base model, which belongs to the installation and to every job that was trained on it; only"
            " fine-tuned models can be deleted",
            param="model",
        )
    found = get_tuned_model(session, project_id, name)
    if found.job.project_id != project_id:
        raise PermissionDenied(
            f"{name!r} belongs to another project, which shares it with this one; only that project can delete it",
            param="model",
        )
    hold = find_hold(session, found.job)
    if hold is not None:
        raise refuse_held(hold, name)
    now = utc_now()
    note_act(
        session,
        "model.deleted",
        actor=actor,
        subject=found.checkpoint.id if found.checkpoint else found.job.id,
        sha256=found.adapter_sha256,
    )
    if found.checkpoint is not None:
        found.checkpoint.model_deleted_at = now
    else:
        found.job.model_deleted_at = now
        _delete_result(session, found.job)
    add_event(session, found.job, f"The model {name} was deleted")


def remove_unwanted_weights(database: Database, settings: Settings) -> None:
    """Let go the weights of models that were deleted a while ago, and of checkpoints whose job failed."""
    grace = timedelta(seconds=settings.deletion_grace_s)
    with read_only(database) as session:
        unwanted = repository.list_unwanted_weights(session, utc_now() - grace)
    for model in unwanted:
        if model.adapter_sha256 is None or not let_go(database, settings, model.adapter_sha256):
            continue
        with unit_of_work(database) as session:
            job = session.get_one(Job, model.job.id)
            if find_hold(session, job) is not None:
                # Its weights were in use by the time; they are looked at again when the hold has ended.
                continue
            if model.checkpoint is not None:
                session.get_one(Checkpoint, model.checkpoint.id).adapter_sha256 = None
            else:
                job.adapter_sha256 = None


def _delete_result(session: Session, job: Job) -> None:
    """Delete the result file that is the adapter too."""
    for file_id in job.result_files:
        file = get_file(session, job.project_id, file_id)
        if file is not None and file.sha256 == job.adapter_sha256:
            file.deleted_at = utc_now()
            job.result_files = [each for each in job.result_files if each != file_id]
