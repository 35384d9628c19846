"""Projects, the keys that open them, and the time that workers spent on them."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import DIGEST, ID, NAME, Base


class Project(Base):
    """A tenant. Every row that belongs to one carries its id."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(NAME)
    limits: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The limits that are not the installation's."""
    policy_id: Mapped[str | None] = mapped_column(ID)
    """The stored safety policy of its jobs; null: the installation's file."""
    created_at: Mapped[datetime]


class ApiKey(Base):
    """A bearer key, stored as its SHA-256."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str] = mapped_column(NAME)
    key_digest: Mapped[str] = mapped_column(DIGEST, unique=True)
    role: Mapped[str] = mapped_column(String(16))
    """A name in app/domain/scopes.py."""
    scopes: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    """Fewer scopes than the role has; null: all of them."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To some minutes."""
    replaced_by: Mapped[str | None] = mapped_column(ID)
    """The key that a rotation made instead of this one."""


class Span(Base):
    """The time from a claim of work to its end, or to the last sign of life of its worker."""

    __tablename__ = "spans"
    __table_args__ = (
        Index("ix_spans_project", "project_id", "until_ms"),
        Index("ix_spans_until", "until_ms"),
    )

    work_id: Mapped[str] = mapped_column(ForeignKey("work.id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    queue: Mapped[str] = mapped_column(String(16))
    started_ms: Mapped[int]
    until_ms: Mapped[int]
    """Both by the database's clock."""
