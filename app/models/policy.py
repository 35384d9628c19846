"""Safety policies that an operator stored, each version for itself."""

from datetime import datetime

from sqlalchemy import LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import DIGEST, ID, NAME, Base


class Policy(Base):
    """A version of a policy, as it was written. It never changes; a change is another version."""

    __tablename__ = "policies"
    __table_args__ = (UniqueConstraint("name", "version"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(NAME)
    version: Mapped[int]
    sha256: Mapped[str] = mapped_column(DIGEST)
    """Of `content`; records name the policy by it."""
    content: Mapped[bytes] = mapped_column(LargeBinary)
    written_in: Mapped[str] = mapped_column(String(8))
    """toml or json."""
    key_id: Mapped[str] = mapped_column(ID)
    """Who stored it."""
    created_at: Mapped[datetime]
