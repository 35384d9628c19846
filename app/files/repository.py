"""Every query of files, scoped by project."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, Select, and_, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app.domain.job import RECORDED, TERMINAL, State
from app.models.base import utc_now
from app.models.base_model import Critic
from app.models.evaluation import Evaluation
from app.models.file import File
from app.models.job import Checkpoint, Job
from app.models.safety_set import SafetySet
from app.models.upload import Upload, UploadPart
from app.models.work import Work
from app.pages import unknown_cursor
from app.policies.repository import list_suites
from app.retention.repository import is_held_file, is_held_job


def _is_there() -> ColumnElement[bool]:
    """Say of a file that it was not deleted and has not expired, whether or not the reconciler has seen that yet.

    The result files of a job are not there before the job has succeeded: nothing of it leaves while it is held.
    """
    released = select(Work.id).where(Work.id == File.job_id, Work.state == State.SUCCEEDED).exists()
    return and_(
        File.deleted_at.is_(None),
        or_(File.expires_at.is_(None), File.expires_at > utc_now()),
        or_(File.job_id.is_(None), released),
    )


def get_file(session: Session, project_id: str, file_id: str) -> File | None:
    """Return a file of the project unless it was deleted or has expired."""
    return session.scalars(
        select(File).where(File.id == file_id, File.project_id == project_id, _is_there())
    ).one_or_none()


def list_files(
    session: Session,
    project_id: str,
    *,
    purpose: str | None,
    after: str | None,
    limit: int,
    order: Literal["asc", "desc"],
) -> Sequence[File]:
    """Return up to limit + 1 files by time of creation."""
    query = select(File).where(File.project_id == project_id, _is_there())
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    key = tuple_(File.created_at, File.id)
    if after is not None:
        cursor = session.execute(
            select(File.created_at, File.id).where(File.id == after, File.project_id == project_id)
        ).one_or_none()
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(key > tuple(cursor) if order == "asc" else key < tuple(cursor))
    if order == "asc":
        query = query.order_by(File.created_at, File.id)
    else:
        query = query.order_by(File.created_at.desc(), File.id.desc())
    return session.scalars(query.limit(limit + 1)).all()


def find_unfinished_job(session: Session, file_id: str) -> str | None:
    """Return a job that has not ended and learns from this file, is validated by it, or has a gate that evaluates with it."""
    suite = Job.gate[("evaluation", "suite")].as_string()
    return session.scalars(
        select(Job.id)
        .join(Job.work)
        .where(or_(Job.training_file == file_id, Job.validation_file == file_id, suite == file_id))
        .where(Work.state.not_in(RECORDED))
        .limit(1)
    ).one_or_none()


def list_twins(session: Session, file: File) -> Sequence[str]:
    """Return the other files of the project that have the same bytes and were not erased."""
    return session.scalars(
        select(File.id)
        .where(File.project_id == file.project_id, File.sha256 == file.sha256, File.id != file.id)
        .where(File.erased_at.is_(None))
        .order_by(File.created_at, File.id)
    ).all()


def list_derived(session: Session, file: File) -> Sequence[str]:
    """Return the files that were made of this one by leaving rows out, and were not erased."""
    return session.scalars(
        select(File.id)
        .where(File.project_id == file.project_id, File.derived_from["file"].as_string() == file.id)
        .where(File.erased_at.is_(None))
        .order_by(File.created_at, File.id)
    ).all()


def list_models_of(session: Session, file: File) -> list[str]:
    """Return the models and named checkpoints that learnt from a file, or were chosen by it, and were not deleted."""
    return _list_models(session, _list_jobs_on(session, file))


def list_later_models(session: Session, file: File) -> list[str]:
    """Return the project's models and named checkpoints that went on from what learnt from a file."""
    first = _list_jobs_on(session, file)
    later = session.execute(
        select(Job.id, Job.lineage).where(Job.project_id == file.project_id, Job.parent_sha256.is_not(None))
    )
    return _list_models(
        session,
        [
            job_id
            for job_id, lineage in later
            if job_id not in first and any(each["job"] in first for each in lineage or [])
        ],
    )


def list_replies_on(session: Session, file: File) -> Sequence[str]:
    """Return the replies of evaluations that put a file's rows to a model: as prompts, or their beginnings before some."""
    replies = _evaluations_on(file).with_only_columns(Evaluation.replies_file)
    return session.scalars(
        select(File.id)
        .where(File.id.in_(replies), File.deleted_at.is_(None))
        .order_by(File.created_at, File.id)
    ).all()


def find_evaluation_on(session: Session, file: File) -> str | None:
    """Return an evaluation that has not ended and puts a file's rows to a model."""
    return session.scalars(
        _evaluations_on(file).join(Evaluation.work).where(Work.state.not_in(TERMINAL)).limit(1)
    ).one_or_none()


def _evaluations_on(file: File) -> Select[str]:
    prefixes = Evaluation.request[("decoding", "data_prefixes")].as_integer()
    return (
        select(Evaluation.id)
        .outerjoin(Job, Job.id == Evaluation.job_id)
        .where(
            or_(
                Evaluation.request["suite"].as_string() == file.id,
                and_(Job.training_file == file.id, prefixes > 0),
            )
        )
    )


def _list_jobs_on(session: Session, file: File) -> Sequence[str]:
    return session.scalars(
        select(Job.id).where(or_(Job.training_file == file.id, Job.validation_file == file.id))
    ).all()


def _list_models(session: Session, job_ids: Sequence[str]) -> list[str]:
    models = session.execute(
        select(Job.fine_tuned_model, Job.created_at).where(
            Job.id.in_(job_ids), Job.fine_tuned_model.is_not(None), Job.model_deleted_at.is_(None)
        )
    )
    checkpoints = session.execute(
        select(Checkpoint.name, Checkpoint.created_at)
        .where(Checkpoint.job_id.in_(job_ids), Checkpoint.name.is_not(None))
        .where(Checkpoint.model_deleted_at.is_(None), Checkpoint.adapter_sha256.is_not(None))
    )
    found = [(created_at, name) for name, created_at in (*models, *checkpoints)]
    return [name for _, name in sorted(found)]


def _is_over(session: Session) -> ColumnElement[bool]:
    """Say of a file that it has expired, is not marked as deleted yet, and that nothing keeps it.

    A job that has begun does, a policy whose gate evaluates with it, and a legal hold.
    """
    needed = (
        select(Job.id)
        .join(Job.work)
        .where(or_(Job.training_file == File.id, Job.validation_file == File.id))
        .where(Work.started_at.is_not(None), Work.state.not_in(TERMINAL))
        .exists()
    )
    return and_(
        File.deleted_at.is_(None),
        File.expires_at <= utc_now(),
        File.id.not_in(list_suites(session)),
        ~needed,
        ~is_held_file(),
    )


def has_expired(session: Session) -> bool:
    """Say whether `delete_expired` has anything to do."""
    return session.scalars(select(File.id).where(_is_over(session)).limit(1)).one_or_none() is not None


def delete_expired(session: Session) -> None:
    """Mark every file that has expired as deleted, but for those that something keeps."""
    session.execute(
        update(File)
        .where(_is_over(session))
        .values(deleted_at=utc_now())
        .execution_options(synchronize_session=False)
    )


def list_deleted(session: Session, before: datetime) -> Sequence[File]:
    """Return the files that were deleted before a time, still have their bytes, and are not under a legal hold."""
    return session.scalars(
        select(File)
        .where(File.deleted_at < before, File.bytes_removed_at.is_(None), ~is_held_file())
        .order_by(File.deleted_at)
    ).all()


def is_adapter(session: Session, sha256: str) -> bool:
    """Say whether these bytes are weights that a job made."""
    found = select(Job.id).where(Job.adapter_sha256 == sha256)
    found_early = select(Checkpoint.id).where(Checkpoint.adapter_sha256 == sha256)
    return any(session.scalars(query.limit(1)).one_or_none() is not None for query in (found, found_early))


def is_in_use(session: Session, sha256: str) -> bool:
    """Say whether anything needs these bytes.

    A file or a part of one, weights, a safety set, a critic, its fit, a policy's gate, and a legal hold.
    """
    for query in (
        select(File.id).where(File.sha256 == sha256, File.deleted_at.is_(None)),
        select(File.id).where(File.sha256 == sha256, or_(File.id.in_(list_suites(session)), is_held_file())),
        select(Job.id).where(Job.adapter_sha256 == sha256, is_held_job()),
        select(Checkpoint.id)
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Checkpoint.adapter_sha256 == sha256, is_held_job()),
        select(UploadPart.id)
        .join(Upload, Upload.id == UploadPart.upload_id)
        .where(UploadPart.sha256 == sha256, Upload.status == "pending"),
        select(Job.id).where(Job.adapter_sha256 == sha256, Job.model_deleted_at.is_(None)),
        select(Job.id)
        .join(Work, Work.id == Job.id)
        .where(Job.parent_sha256 == sha256, Work.state.not_in(TERMINAL)),
        select(Checkpoint.id)
        .join(Work, Work.id == Checkpoint.job_id)
        .where(Checkpoint.adapter_sha256 == sha256, Checkpoint.model_deleted_at.is_(None))
        .where(Work.state.not_in((State.FAILED, State.CANCELLED))),
        select(SafetySet.id).where(SafetySet.sha256 == sha256),
        select(Work.id)
        .where(Work.state.not_in(TERMINAL))
        .where(
            or_(*(Work.args[name].as_string() == sha256 for name in ("data_sha256", "validation_sha256")))
        ),
    ):
        if session.scalars(query.limit(1)).one_or_none() is not None:
            return True
    return any(sha256 in files.values() for files in session.scalars(select(Critic.files)))
