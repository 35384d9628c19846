"""Base models and the critics fitted for them. Both belong to the installation, not to a project."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.domain.safety_spec import DEFAULT_CATEGORY
from app.models.base import DIGEST, ID, NAME, Base


class BaseModel(Base):
    """A registered model directory, pinned by the digest of each of its files."""

    __tablename__ = "base_models"

    name: Mapped[str] = mapped_column(NAME, primary_key=True)
    path: Mapped[str] = mapped_column(Text)
    digest: Mapped[str] = mapped_column(DIGEST)
    """SHA-256 over the canonical JSON of `files`."""
    files: Mapped[dict[str, Any]]
    """SHA-256 of each file by its path in the directory."""
    revision: Mapped[str | None] = mapped_column(NAME)
    """Which revision of its repository the folder is, as its operator said; null where nobody did."""
    training_flops: Mapped[float | None]
    """Floating-point operations that training it took, as its maker published them; null where that is not known."""
    hidden_size: Mapped[int]
    max_position_embeddings: Mapped[int]
    created_at: Mapped[datetime]


class Critic(Base):
    """A fitted activation critic: of one base model, for one harm category."""

    __tablename__ = "critics"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    base_model: Mapped[str] = mapped_column(ForeignKey("base_models.name"), index=True)
    base_digest: Mapped[str] = mapped_column(DIGEST)
    category: Mapped[str] = mapped_column(ID, server_default=DEFAULT_CATEGORY)
    digest: Mapped[str] = mapped_column(DIGEST)
    """SHA-256 over the canonical JSON of `files`."""
    files: Mapped[dict[str, Any]]
    """SHA-256 of each file of the critic; their bytes are in storage."""
    report: Mapped[dict[str, Any]]
    """Quality on held-out groups: AUROC, TPR at 1 % FPR, per layer and pooled."""
    low: Mapped[float]
    high: Mapped[float]
    """Log-odds that map to s = 0 and s = 1."""
    threshold: Mapped[float | None]
    """Log-odds from which at most 1 % of the held-out benign requests are; null for critics from before this was kept."""
    created_at: Mapped[datetime]
