"""Projects and the keys that open them."""

from datetime import datetime

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import DIGEST, ID, NAME, Base


class Project(Base):
    """A tenant. Every row that belongs to one carries its id."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    name: Mapped[str] = mapped_column(NAME)
    created_at: Mapped[datetime]


class ApiKey(Base):
    """A bearer key, stored as its SHA-256."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str] = mapped_column(NAME)
    key_digest: Mapped[str] = mapped_column(DIGEST, unique=True)
    role: Mapped[str] = mapped_column(String(16))
    """member, or operator: who may also register what every project's safety rests on."""
    created_at: Mapped[datetime]
