"""What was pruned of jobs, and what may not be pruned."""

from datetime import datetime

from sqlalchemy import ForeignKey, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import ID, Base
from app.models.job import AUTOINCREMENT


class PrunedJob(Base):
    """A pruning of a job: what the installation's log was told, and whether the bytes are gone by now."""

    __tablename__ = "pruned_jobs"

    number: Mapped[int] = mapped_column(AUTOINCREMENT, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    scope: Mapped[str] = mapped_column(String(16))
    """A scope of app/domain/retention.py."""
    pruning: Mapped[bytes] = mapped_column(LargeBinary)
    """The exact bytes whose digest is in the log."""
    event: Mapped[int] = mapped_column(ForeignKey("log_events.number"))
    announced_at: Mapped[datetime]
    done_at: Mapped[datetime | None]
    """When the bytes went: not before the event was under a signed checkpoint."""


class LegalHold(Base):
    """That nothing of a job, or of a whole project, may be pruned or erased."""

    __tablename__ = "legal_holds"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    """Null where the whole project is held."""
    reason: Mapped[str] = mapped_column(Text)
    """The log has its digest."""
    created_at: Mapped[datetime]
    released_at: Mapped[datetime | None]
