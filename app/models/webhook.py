"""Where a project wants to be told what happened, and the log of telling it."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Boolean, ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import ID, NAME, Base


class EventType(StrEnum):
    """What an endpoint can be told."""

    SUCCEEDED = "fine_tuning.job.succeeded"
    FAILED = "fine_tuning.job.failed"
    CANCELLED = "fine_tuning.job.cancelled"
    PAUSED = "fine_tuning.job.paused"
    """Ours: somebody, or the run-level monitor, paused the job."""
    HELD = "fine_tuning.job.held"
    """Ours: the policy's gate holds what the job made until somebody releases or rejects it."""
    SAFETY_ALERT = "fine_tuning.job.safety_alert"
    """Ours: the run-level monitor found the model farther from its reference than its limit."""


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    """Given up."""


class WebhookEndpoint(Base):
    """An address of a project's that is told of events. Its secrets are kept as they are, since they sign."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index("ix_webhook_endpoints_page", "project_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(NAME)
    url: Mapped[str] = mapped_column(Text)
    event_types: Mapped[list[Any]]
    enabled: Mapped[bool] = mapped_column(Boolean)
    disabled_reason: Mapped[str | None] = mapped_column(Text)
    """Why deliveries stopped, where that was not the client's wish."""
    secret: Mapped[bytes] = mapped_column(LargeBinary(32))
    former_secret: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    former_secret_until_ms: Mapped[int | None]
    """Until then it signs too, by the database's clock."""
    good_at_ms: Mapped[int]
    """When it last took a delivery, or was last set up, by the database's clock."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class WebhookDelivery(Base):
    """One event for one endpoint, and how far telling it has come. `attempts` is the fencing token of an attempt."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_page", "endpoint_id", "created_at", "id"),
        Index("ix_webhook_deliveries_due", "state", "next_attempt_at_ms"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    # The rows go with their endpoint, in the database: a job that ends just then must not be kept from ending.
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    event_id: Mapped[str] = mapped_column(ID)
    event_type: Mapped[str] = mapped_column(String(64))
    body: Mapped[bytes] = mapped_column(LargeBinary)
    """The exact bytes that are signed and sent."""
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    tried_since_ms: Mapped[int | None]
    """When the first attempt began, by the database's clock."""
    next_attempt_at_ms: Mapped[int | None]
    """Null where nothing more is tried. Whoever attempts it moves this to the end of its lease."""
    attempted_at: Mapped[datetime | None]
    status_code: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    """What was wrong with the last attempt, in our words."""
    created_at: Mapped[datetime]
