"""Every query of base models and of the fine-tuned models of a project."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Select, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.base_models.tuned import TunedModel
from app.domain.job import State
from app.models.base_model import BaseModel
from app.models.job import Checkpoint, Job
from app.models.permission import CheckpointPermission
from app.models.work import Work
from app.retention.repository import is_held_job


def get_base_model(session: Session, name: str) -> BaseModel | None:
    """Return a registered base model."""
    return session.get(BaseModel, name)


def list_base_models(session: Session) -> Sequence[BaseModel]:
    """Return the base models by name."""
    return session.scalars(select(BaseModel).order_by(BaseModel.name)).all()


def list_tuned_models(session: Session, project_id: str) -> list[TunedModel]:
    """Return the models and checkpoints that the project may use, newest first."""
    models = session.scalars(_models().where(_may_use(project_id, Job.fine_tuned_model)))
    checkpoints = session.execute(_checkpoints().where(_may_use(project_id, Checkpoint.name)))
    found = [TunedModel(job, None) for job in models]
    found += [TunedModel(*row) for row in checkpoints]
    return sorted(found, key=lambda each: (each.created_at, each.name), reverse=True)


def get_tuned_model(session: Session, project_id: str, name: str) -> TunedModel | None:
    """Return a model or checkpoint that the project may use: its own, or one that was shared with it."""
    return _find(
        session,
        _models().where(Job.fine_tuned_model == name, _may_use(project_id, Job.fine_tuned_model)),
        _checkpoints().where(Checkpoint.name == name, _may_use(project_id, Checkpoint.name)),
    )


def load_tuned_model(session: Session, name: str) -> TunedModel | None:
    """Return a model or checkpoint of any project, for an operator."""
    return _find(
        session, _models().where(Job.fine_tuned_model == name), _checkpoints().where(Checkpoint.name == name)
    )


def get_weights(
    session: Session, project_id: str, job_id: str, checkpoint_id: str | None
) -> TunedModel | None:
    """Return a job, or a checkpoint with a name, that the project may use, whether or not it has been released."""
    if checkpoint_id is None:
        job = session.scalars(
            select(Job).where(Job.id == job_id, _may_use(project_id, Job.fine_tuned_model))
        ).one_or_none()
        return TunedModel(job, None) if job else None
    row = session.execute(
        select(Job, Checkpoint)
        .join(Checkpoint, Checkpoint.job_id == Job.id)
        .where(Job.id == job_id, Checkpoint.id == checkpoint_id, Checkpoint.name.is_not(None))
        .where(_may_use(project_id, Checkpoint.name))
    ).one_or_none()
    return TunedModel(*row) if row else None


def list_unwanted_weights(session: Session, before: datetime) -> list[TunedModel]:
    """Return what still has weights and never needs them: deleted, or of a job that failed, before a time.

    The weights of jobs under a legal hold stay.
    """
    jobs = session.scalars(
        select(Job).where(Job.model_deleted_at < before, Job.adapter_sha256.is_not(None), ~is_held_job())
    )
    lost = Work.state.in_((State.FAILED, State.CANCELLED)) & (Work.finished_at < before)
    checkpoints = session.execute(
        select(Job, Checkpoint)
        .join(Checkpoint, Checkpoint.job_id == Job.id)
        .join(Work, Work.id == Job.id)
        .where(Checkpoint.adapter_sha256.is_not(None), or_(Checkpoint.model_deleted_at < before, lost))
        .where(~is_held_job())
    )
    return [TunedModel(job, None) for job in jobs] + [TunedModel(*row) for row in checkpoints]


def _models() -> Select[Job]:
    """Select what jobs released and nobody deleted."""
    return (
        select(Job)
        .join(Work, Work.id == Job.id)
        .where(Work.state == State.SUCCEEDED, Job.fine_tuned_model.is_not(None))
        .where(Job.model_deleted_at.is_(None))
    )


def _checkpoints() -> Select[Job, Checkpoint]:
    """Select the checkpoints that jobs released with their model and nobody deleted."""
    return (
        select(Job, Checkpoint)
        .join(Checkpoint, Checkpoint.job_id == Job.id)
        .join(Work, Work.id == Job.id)
        .where(Work.state == State.SUCCEEDED, Job.fine_tuned_model.is_not(None))
        .where(Checkpoint.name.is_not(None), Checkpoint.model_deleted_at.is_(None))
    )


def _may_use(project_id: str, name: InstrumentedAttribute[str | None]) -> ColumnElement[bool]:
    shared = select(CheckpointPermission.model).where(CheckpointPermission.project_id == project_id)
    return or_(Job.project_id == project_id, name.in_(shared))


def _find(session: Session, models: Select[Job], checkpoints: Select[Job, Checkpoint]) -> TunedModel | None:
    job = session.scalars(models).one_or_none()
    if job is not None:
        return TunedModel(job, None)
    row = session.execute(checkpoints).one_or_none()
    return TunedModel(*row) if row else None
