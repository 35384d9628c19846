"""The one table of work, and the workers that are there to do it."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import DIGEST, ID, NAME, Base


class Work(Base):
    """A piece of work of any kind, its lease, and the head of its record.

    `desired` is what the client wants; `state` changes only by compare-and-set on (state, epoch).
    """

    __tablename__ = "work"
    __table_args__ = (Index("ix_work_claim", "state", "queue", "created_at"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    kind: Mapped[str] = mapped_column(String(32))
    queue: Mapped[str] = mapped_column(String(16))
    args: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    desired: Mapped[str] = mapped_column(String(16))
    epoch: Mapped[int]
    """The fencing token: raised by every claim and every take-over."""
    attempt: Mapped[int]
    owner: Mapped[str | None] = mapped_column(NAME)
    lease_until_ms: Mapped[int | None]
    """By the database's clock."""
    knocked_at_ms: Mapped[int | None]
    """When the queue was last told, by the database's clock."""
    attempts_without_progress: Mapped[int]
    not_before_ms: Mapped[int | None]
    """Postponed work is not claimed before this, by the database's clock."""
    priority: Mapped[int] = mapped_column(server_default=text("0"))
    """Within the project and the queue: higher goes first."""
    turn: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """While it is queued: when it is expected to be claimed, as the reconciler last saw it."""
    infrastructure_failures: Mapped[int]
    """Attempts that the surroundings ended: a full disk, a storage or a database that was away."""
    error: Mapped[dict[str, Any] | None]
    ledger_size: Mapped[int]
    ledger_head: Mapped[str] = mapped_column(DIGEST)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Worker(Base):
    """A worker process that says that it lives."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    queue: Mapped[str] = mapped_column(String(16))
    host: Mapped[str] = mapped_column(NAME)
    seen_at_ms: Mapped[int]
    """By the database's clock."""
