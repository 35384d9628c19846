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


class Anchor(Base):
    """How far the checkpoint was sent outside. There is one row, which the migration made."""

    __tablename__ = "anchors"

    name: Mapped[str] = mapped_column(ID, primary_key=True)
    log: Mapped[int | None] = mapped_column(ForeignKey("installation_logs.number"))
    size: Mapped[int]
    """Of the newest checkpoint that the receiver took, in that log."""
    sent_at: Mapped[datetime | None]
    """When it took one; null where it never did."""
    next_at_ms: Mapped[int]
    """Nobody sends before this, by the database's clock."""
    failing_since_ms: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    """What the last attempt ended with, if it failed; in words that may be shown."""


class NotaryRefusal(Base):
    """That the notary signs nothing, and why: of number 1 while it signs nothing at all, of any other one about one job.

    The reason of the others begins with the job's id (`notary.repository.OF_A_JOB`).
    """

    __tablename__ = "notary_refusals"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    since: Mapped[datetime]
    reason: Mapped[str] = mapped_column(Text)


class NotedDigest(Base):
    """The digest of a thing as the newest event about it has it, so that the same is not told twice."""

    __tablename__ = "noted_digests"

    name: Mapped[str] = mapped_column(ID, primary_key=True)
    sha256: Mapped[str] = mapped_column(DIGEST)


class WeightDownload(Base):
    """When the log was last told that a key downloads an artefact."""

    __tablename__ = "weight_downloads"

    key_id: Mapped[str] = mapped_column(ID, primary_key=True)
    sha256: Mapped[str] = mapped_column(DIGEST, primary_key=True)
    noted_at_ms: Mapped[int]
    """By the database's clock."""


class LedgerUnlock(Base):
    """Has a row while a transaction prunes, for which the triggers let it replace leaves. Never committed with a row in it."""

    __tablename__ = "ledger_unlocks"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
