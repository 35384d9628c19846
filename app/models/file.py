"""Files that clients uploaded and results that jobs left."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import DIGEST, ID, NAME, Base


class File(Base):
    """A file of a project; its bytes are in storage under `sha256`."""

    __tablename__ = "files"
    __table_args__ = (Index("ix_files_page", "project_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(NAME)
    purpose: Mapped[str] = mapped_column(String(32))
    size_bytes: Mapped[int]
    sha256: Mapped[str] = mapped_column(DIGEST)
    status: Mapped[str] = mapped_column(String(16))
    status_details: Mapped[str | None] = mapped_column(Text)
    rows: Mapped[int | None]
    """Rows of a training file, once it was checked."""
    format: Mapped[str | None] = mapped_column(String(32))
    """How the rows of a training file are written: a name in app/domain/conversion.py."""
    findings: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)
    """What the check of a training file found: every problem, as reports have them."""
    derived_from: Mapped[dict[str, Any] | None]
    """The file that this one was made of by leaving rows out, and which."""
    job_id: Mapped[str | None] = mapped_column(ID)
    """The job that a result file is of; nobody sees the file before that job has succeeded."""
    commitment_key: Mapped[bytes] = mapped_column(LargeBinary(32))
    """Key of the digests by which records name rows; empty once it was erased, which makes them meaningless."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None] = mapped_column(index=True)
    """When it counts as deleted; null for a file that stays."""
    deleted_at: Mapped[datetime | None]
    bytes_removed_at: Mapped[datetime | None]
    """When the bytes of a deleted file were let go; other files may still have the same ones."""
    erased_at: Mapped[datetime | None]
    """When the key went, and with it what was kept of the rows."""
