"""Fine-tuned models that another project may use."""

from datetime import datetime

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import ID, NAME, Base


class CheckpointPermission(Base):
    """Leave for a project to see a fine-tuned model or checkpoint of another one, and to download its adapter."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (UniqueConstraint("model", "project_id"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    model: Mapped[str] = mapped_column(NAME)
    """Name of the model or of the checkpoint."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    """The project that may use it."""
    created_at: Mapped[datetime]
