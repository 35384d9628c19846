"""Reports on datasets, and who read the risks in them."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, LargeBinary, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.models.base import DIGEST, ID, Base
from app.models.job import AUTOINCREMENT
from app.models.work import Work


class Report(Base):
    """What was found of a dataset on a base model. Its making is the row of work with the same id."""

    __tablename__ = "reports"
    __table_args__ = (Index("ix_reports_digest", "project_id", "digest", unique=True),)

    id: Mapped[str] = mapped_column(ForeignKey("work.id"), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    digest: Mapped[str] = mapped_column(DIGEST)
    """SHA-256 of everything that decides the report: it is made once."""
    body: Mapped[dict[str, Any] | None]
    """Null until it is made."""
    scores: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    """The risk of each row of the file, packed by `app.domain.row_risks`; null where none was measured."""
    created_at: Mapped[datetime]

    work: Mapped[Work] = relationship(lazy="joined", innerjoin=True)


class RiskRead(Base):
    """One reading or use of the risks of rows: who repeats it often enough learns how to stay below the critic."""

    __tablename__ = "risk_reads"
    __table_args__ = (Index("ix_risk_reads_report_id", "report_id"),)

    number: Mapped[int] = mapped_column(AUTOINCREMENT, primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    report_id: Mapped[str] = mapped_column(ForeignKey("reports.id"))
    key_id: Mapped[str] = mapped_column(ID)
    visibility: Mapped[str] = mapped_column(String(16))
    """How much the policy let the reader see."""
    use: Mapped[str] = mapped_column(String(16))
    """read, or exclude: rows were left out by their risk."""
    created_at: Mapped[datetime]


def reading_of(args: dict[str, Any]) -> dict[str, Any] | None:
    """Return the critic that a report is measured with, by the arguments of its work; None where it is not measured."""
    if "reading" in args or args["critic"] is None:
        return args.get("reading")
    # Asked for before an upgrade, when reports were measured with one fitted critic.
    return {"type": "activation", "id": args["critic"]}
