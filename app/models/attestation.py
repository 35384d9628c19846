"""What the notary signed about single adapters."""

from datetime import datetime

from sqlalchemy import ForeignKey, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import ID, Base


class Attestation(Base):
    """The signed statement about a job's adapter. A job has succeeded only when there is one."""

    __tablename__ = "attestations"

    work_id: Mapped[str] = mapped_column(ForeignKey("work.id"), primary_key=True)
    envelope: Mapped[bytes] = mapped_column(LargeBinary)
    """A DSSE envelope as canonical JSON."""
    key: Mapped[str] = mapped_column(ID)
    """The id of the key that signed."""
    created_at: Mapped[datetime]
