"""Uploads in parts: what was announced, and the parts that came."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import DIGEST, ID, NAME, Base


class Upload(Base):
    """A file that comes in parts. The first who completes, cancels or finds it expired gives it its last status."""

    __tablename__ = "uploads"
    __table_args__ = (Index("ix_uploads_status", "status", "expires_at"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    filename: Mapped[str] = mapped_column(NAME)
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int]
    """What was announced, and what the ordered parts must add up to."""
    status: Mapped[str] = mapped_column(String(16))
    """pending, completed, cancelled or expired."""
    expires_after_s: Mapped[int | None]
    """Life of the file that comes of it."""
    received_bytes: Mapped[int]
    received_parts: Mapped[int]
    part_ids: Mapped[list[Any] | None]
    """The order in which the parts became the file."""
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


class UploadPart(Base):
    """Bytes of a part of an upload, in storage under `sha256`; the row goes when they were let go."""

    __tablename__ = "upload_parts"
    __table_args__ = (UniqueConstraint("upload_id", "sha256"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    sha256: Mapped[str] = mapped_column(DIGEST, index=True)
    size_bytes: Mapped[int]
    created_at: Mapped[datetime]
