"""Fine-tuning jobs, and what they leave behind step by step."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.models.base import DIGEST, ID, NAME, Base
from app.models.work import Work

AUTOINCREMENT = BigInteger().with_variant(Integer(), "sqlite")


class Job(Base):
    """What a client submitted. Its life (state, lease, record) is the row of work with the same id."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_page", "project_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(ForeignKey("work.id"), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    model: Mapped[str] = mapped_column(ForeignKey("base_models.name"))
    training_file: Mapped[str] = mapped_column(ForeignKey("files.id"))
    validation_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    critic_id: Mapped[str | None] = mapped_column(ForeignKey("critics.id"))
    """The first fitted critic that it is measured with; `request` names them all."""
    suffix: Mapped[str | None] = mapped_column(NAME)
    seed: Mapped[int]
    job_metadata: Mapped[dict[str, Any] | None]
    request: Mapped[dict[str, Any]]
    """method, safety and training as they were asked for."""
    spec: Mapped[dict[str, Any] | None]
    """The resolved TrainingSpec; null until the training file is known to be good."""
    parent_sha256: Mapped[str | None] = mapped_column(DIGEST)
    """The adapter's zip that the job goes on from; null where it begins with a fresh adapter."""
    lineage: Mapped[list[Any] | None]
    """The generations before, nearest first: model, job and step of each."""
    total_steps: Mapped[int | None]
    step: Mapped[int]
    trained_tokens: Mapped[int | None]
    risk_mean: Mapped[float | None]
    beta_mean: Mapped[float | None]
    """Means over the steps so far."""
    estimated_finish_at: Mapped[datetime | None]
    fine_tuned_model: Mapped[str | None] = mapped_column(NAME, unique=True)
    adapter_sha256: Mapped[str | None] = mapped_column(DIGEST)
    adapter_bytes: Mapped[int | None]
    model_deleted_at: Mapped[datetime | None]
    """When the client deleted the released model; what is said of it elsewhere stays."""
    result_files: Mapped[list[Any]]
    pruned_at: Mapped[datetime | None]
    """When the records of its steps went, because they were older than they are kept."""
    gate: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The gate of the policy that the job was created under, with the policy's name; null where it has none."""
    gate_result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What the gate found so far: verdict and limits, and of the start its floor too."""
    created_at: Mapped[datetime]

    decisions: Mapped[list["JobDecision"]] = relationship(order_by="JobDecision.number")
    """What people decided about it while it was held."""
    work: Mapped[Work] = relationship(lazy="joined", innerjoin=True)


class JobDecision(Base):
    """What somebody decided about a held job, and why. The log has the reason's digest; the text is only here."""

    __tablename__ = "job_decisions"
    __table_args__ = (UniqueConstraint("job_id", "key_id", "decision"),)

    number: Mapped[int] = mapped_column(AUTOINCREMENT, primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    key_id: Mapped[str] = mapped_column(ForeignKey("api_keys.id"))
    decision: Mapped[str] = mapped_column(String(16))
    """approved or rejected."""
    reason: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class Event(Base):
    """A line of a job's event log."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_page", "job_id", "number"),
        # A long job has a thousand events of metrics for each message.
        Index(
            "ix_events_messages",
            "job_id",
            "number",
            sqlite_where=text("type = 'message'"),
            postgresql_where=text("type = 'message'"),
        ),
    )

    number: Mapped[int] = mapped_column(AUTOINCREMENT, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(ID, unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]


class Step(Base):
    """The step records of a job as queries need them; the ledger's leaves are the record itself."""

    __tablename__ = "steps"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    record: Mapped[dict[str, Any]]
    validation: Mapped[dict[str, Any] | None]


class CurvePiece(Base):
    """A piece of a job's risk curve, packed (`risk_curve.pack_steps`): the steps from the piece before to `last_step`."""

    __tablename__ = "curve_pieces"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    last_step: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    packed: Mapped[bytes] = mapped_column(LargeBinary)


class Checkpoint(Base):
    """State of a job after a step, to resume from. Those at the end of a data epoch have a name on the wire."""

    __tablename__ = "checkpoints"
    __table_args__ = (Index("ix_checkpoints_page", "job_id", "step"),)

    id: Mapped[str] = mapped_column(ID, primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    digest: Mapped[str] = mapped_column(DIGEST)
    folder: Mapped[str | None] = mapped_column(Text)
    """Folder below the checkpoint folder of the job, while it is kept to resume from."""
    stored: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """SHA-256 of its files by name, while they are in the bucket too; null where it is local alone."""
    host: Mapped[str | None] = mapped_column(NAME)
    """The machine that wrote it."""
    size_bytes: Mapped[int | None]
    """Of its files together."""
    name: Mapped[str | None] = mapped_column(NAME, unique=True)
    adapter_sha256: Mapped[str | None] = mapped_column(DIGEST)
    """The adapter's zip of a checkpoint with a name, while its bytes are kept. Released with the job's model."""
    model_deleted_at: Mapped[datetime | None]
    metrics: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class RiskRow(Base):
    """One row of a job's risk table: the exact canonical bytes that the ledger commits to."""

    __tablename__ = "risk_rows"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    entry: Mapped[bytes] = mapped_column(LargeBinary)


class LedgerLeaf(Base):
    """One leaf of a job's ledger: the exact bytes that were hashed."""

    __tablename__ = "ledger_leaves"

    work_id: Mapped[str] = mapped_column(ForeignKey("work.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    leaf: Mapped[bytes] = mapped_column(LargeBinary)
