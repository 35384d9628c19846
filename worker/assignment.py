"""What a job was created from: its row, base model, critics, registered sets and files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app import storage
from app.database import read_only
from app.domain import ledger
from app.domain.control_law import fitted_ids
from app.domain.dataset import read_chat_rows, read_lines
from app.domain.safety_spec import AnySafety
from app.domain.training_spec import TrainingSpec
from app.errors import JobFailure
from app.jobs import repository
from app.models.base_model import BaseModel, Critic
from app.models.file import File
from app.models.job import Job
from app.models.safety_set import SafetySet
from worker.context import Context
from worker.journal import from_older_version


@dataclass(frozen=True, slots=True)
class Assignment:
    """The rows of the database that say what to do."""

    job: Job
    base: BaseModel
    fitted: tuple[Critic, ...]
    """The fitted critics that the job's critic reads with or falls back on, in the order in which it names them."""
    anchors: SafetySet | None
    alignment: SafetySet | None
    training_file: File
    validation_file: File | None
    spec: TrainingSpec
    critic_sha256: str | None
    """The critic that the job was created with."""
    policy_sha256: str
    parent_sha256: str | None = None
    """The zip of the adapter that the job goes on from."""


def load_assignment(context: Context) -> Assignment:
    """Read what the job refers to. Raises JobFailure where something was removed, or Tether upgraded, meanwhile."""
    with read_only(context.database) as session:
        job = repository.load_job(session, context.lease.work_id)
        base = session.get_one(BaseModel, job.model)
        safety = TrainingSpec.model_validate(job.spec).safety
        fitted = tuple(load_fitted(session, safety))
        anchors, alignment = (
            session.get_one(SafetySet, set_id) if set_id else None for set_id in set_ids(safety)
        )
        files = [session.get(File, each) for each in (job.training_file, job.validation_file) if each]
        created = repository.load_created_record(session, job.id)
    if ledger.version_of(created) == 1:
        raise from_older_version()
    return Assignment(
        job=job,
        base=base,
        fitted=fitted,
        anchors=anchors,
        alignment=alignment,
        training_file=_present(files[0], "training_file"),
        validation_file=_present(files[1], "validation_file") if len(files) > 1 else None,
        spec=TrainingSpec.model_validate(job.spec),
        critic_sha256=created["body"]["critic"] and created["body"]["critic"]["sha256"],
        policy_sha256=created["body"]["policy_sha256"],
        parent_sha256=(created["body"].get("parent") or {}).get("adapter_sha256"),
    )


def load_fitted(session: Session, safety: AnySafety) -> Iterator[Critic]:
    """Yield the fitted critics that a job was pinned to, in order. Raises JobFailure for one that is not there."""
    for critic_id in fitted_ids(safety.critic.model_dump() if safety.critic else None):
        critic = session.get(Critic, critic_id)
        if critic is None:
            raise JobFailure(
                f"the critic {critic_id} of this job is not registered any more", code="critic_not_found"
            )
        yield critic


def set_ids(safety: AnySafety) -> tuple[str | None, str | None]:
    """Return the ids of the registered sets that a job was pinned to: its anchors and its alignment data."""
    anchors = next((each.id for each in (safety.anchors, safety.monitor) if each is not None), None)
    return anchors, getattr(safety, "alignment_file", None)


def read_rows(context: Context, sha256: str) -> list[dict[str, Any]]:
    """Read the rows of a stored file as chat rows, its bytes checked against its digest."""
    with storage.open_stored(context.settings.storage, sha256) as stored:
        rows: list[dict[str, Any]] = read_chat_rows(read_lines(stored))
    return rows


def load_set(context: Context, registered: SafetySet | None) -> list[dict[str, Any]]:
    """Read the rows of a registered set; none where the job has no such set."""
    return read_rows(context, registered.sha256) if registered else []


def _present(file: File | None, param: str) -> File:
    # Whoever deletes a file that a job needs is refused; this one was deleted while the job was being created.
    if file is None or file.deleted_at is not None:
        raise JobFailure(
            "the file was deleted or has expired before the job began; upload it again and submit the job again",
            code="file_not_found",
            param=param,
        )
    return file
