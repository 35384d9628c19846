"""Evaluations of models, before and after."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.models.base import DIGEST, NAME, Base
from app.models.work import Work


class Evaluation(Base):
    """How a model behaves with its adapter off and on. Its making is the row of work with the same id."""

    __tablename__ = "evaluations"
    __table_args__ = (Index("ix_evaluations_page", "project_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(ForeignKey("work.id"), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    model: Mapped[str] = mapped_column(NAME)
    """As the client named it: a base model, a fine-tuned one, or a checkpoint."""
    base_model: Mapped[str] = mapped_column(ForeignKey("base_models.name"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    """The job that made the model; null for a base model."""
    request: Mapped[dict[str, Any]]
    """suite, judge and decoding as they were asked for, with every default."""
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), deferred=True)
    """`EvaluationResult.to_body`; null until it is there."""
    result_sha256: Mapped[str | None] = mapped_column(DIGEST)
    """SHA-256 of the canonical result, as the installation's log has it."""
    replies_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[datetime]

    work: Mapped[Work] = relationship(lazy="joined", innerjoin=True)
