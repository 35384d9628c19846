"""Registered sets of rows that training needs beside the user's: anchors, alignment data, harmful data."""

from datetime import datetime
from typing import Literal

from sqlalchemy import ForeignKey, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import DIGEST, ID, Base

SetKind = Literal["anchors", "alignment", "harmful"]


class SafetySet(Base):
    """A set of an operator's for one base model. Like critics, sets belong to the installation, not to a project."""

    __tablename__ = "safety_sets"

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    base_model: Mapped[str] = mapped_column(ForeignKey("base_models.name"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    """anchors, alignment or harmful."""
    sha256: Mapped[str] = mapped_column(DIGEST)
    """Of the file of rows, whose bytes are in storage."""
    rows: Mapped[int]
    commitment_key: Mapped[bytes] = mapped_column(LargeBinary(32))
    """Key of the digests by which records name rows, as files have one."""
    created_at: Mapped[datetime]
