"""Every query of base models and of the fine-tuned models of a project."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models.base_model import BaseModel
from app.models.job import Checkpoint, Job


def get_base_model(session: Session, name: str) -> BaseModel | None:
    """Return a registered base model."""
    return session.get(BaseModel, name)


def list_base_models(session: Session) -> Sequence[BaseModel]:
    """Return the base models by name."""
    return session.scalars(select(BaseModel).order_by(BaseModel.name)).all()


def list_tuned_models(session: Session, project_id: str) -> Sequence[Job]:
    """Return the project's jobs that have released a model, newest first."""
    return session.scalars(
        select(Job)
        .where(Job.project_id == project_id, Job.fine_tuned_model.is_not(None))
        .order_by(Job.created_at.desc(), Job.id.desc())
    ).all()


def get_tuned_model(session: Session, project_id: str, name: str) -> Job | None:
    """Return the job that released this model."""
    return session.scalars(
        select(Job).where(Job.project_id == project_id, Job.fine_tuned_model == name)
    ).one_or_none()


def get_named_checkpoint(session: Session, project_id: str, name: str) -> Checkpoint | None:
    """Return the checkpoint of this model name."""
    return session.scalars(
        select(Checkpoint).where(Checkpoint.project_id == project_id, Checkpoint.name == name)
    ).one_or_none()
