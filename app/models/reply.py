"""Replies that are given again when a request is sent again."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import DIGEST, ID, NAME, Base


class Reply(Base):
    """What a request of a key was answered."""

    __tablename__ = "replies"
    __table_args__ = (
        UniqueConstraint("api_key_id", "route", "idempotency_key"),
        Index("ix_replies_created_at", "created_at"),
    )

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    api_key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    route: Mapped[str] = mapped_column(String(64))
    idempotency_key: Mapped[str | None] = mapped_column(NAME)
    """As the client chose it; null for a request that came without."""
    body_sha256: Mapped[str] = mapped_column(DIGEST)
    reply: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    awaits_original_since_ms: Mapped[int | None] = mapped_column(BigInteger)
    """When a retry got it whose original has not come yet, by the database's clock; null for every other reply."""
