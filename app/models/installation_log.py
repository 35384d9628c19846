"""The installation's log: heads of all jobs' ledgers and acts that concern no single job, and the notary's signatures."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.models.base import DIGEST, ID, NAME, Base
from app.models.job import AUTOINCREMENT


class InstallationLog(Base):
    """A log by its origin. There is one, and one more for each time that an operator forked it."""

    __tablename__ = "installation_logs"

    number: Mapped[int] = mapped_column(AUTOINCREMENT, primary_key=True, autoincrement=True)
    origin: Mapped[str] = mapped_column(NAME, unique=True)
    created_at: Mapped[datetime]


class LogLeaf(Base):
    """One leaf of a log: the exact bytes that were hashed."""

    __tablename__ = "log_leaves"

    log: Mapped[int] = mapped_column(ForeignKey("installation_logs.number"), primary_key=True)
    index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    leaf: Mapped[bytes] = mapped_column(LargeBinary)


class LogHead(Base):
    """Where the heads of a job's ledger stand in a log."""

    __tablename__ = "log_heads"

    log: Mapped[int] = mapped_column(ForeignKey("installation_logs.number"), primary_key=True)
    work_id: Mapped[str] = mapped_column(ForeignKey("work.id"), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    index: Mapped[int] = mapped_column(BigInteger)
    made_at_ms: Mapped[int]
    """By the database's clock."""


class LogEvent(Base):
    """An act, kept in the transaction of the act, until the notary puts it into the log."""

    __tablename__ = "log_events"
    __table_args__ = (Index("ix_log_events_pending", "log"),)

    number: Mapped[int] = mapped_column(AUTOINCREMENT, primary_key=True, autoincrement=True)
    leaf: Mapped[bytes] = mapped_column(LargeBinary)
    log: Mapped[int | None] = mapped_column(ForeignKey("installation_logs.number"))
    """Null until it is in a log."""


class LogCheckpoint(Base):
    """What the notary signed."""

    __tablename__ = "log_checkpoints"

    log: Mapped[int] = mapped_column(ForeignKey("installation_logs.number"), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    root: Mapped[str] = mapped_column(DIGEST)
    note: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(ID)
    """Name and id of the key."""
    signed_at: Mapped[datetime]
