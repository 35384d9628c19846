"""Queries of the ledger: the fenced append, and reading it back."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from app.domain.ledger import build_leaf, chain_hash
from app.errors import LeaseLost
from app.models.base import now_ms
from app.models.job import LedgerLeaf, RiskRow
from app.models.work import Work


def append_leaf(
    session: Session,
    work_id: str,
    *,
    epoch: int,
    kind: str,
    body: Mapping[str, Any],
    ts_worker: int | None = None,
) -> None:
    """Append one leaf to the ledger of a piece of work, fenced by its epoch.

    The head moves by compare-and-set in the transaction that inserts the leaf, so there is no gap, no
    duplicate and no stale writer. Raises LeaseLost where the epoch is no longer ours.
    """
    head = session.execute(
        select(Work.ledger_size, Work.ledger_head, Work.attempt, now_ms().label("ts_db"))
        .where(Work.id == work_id, Work.epoch == epoch)
        .with_for_update()
    ).one_or_none()
    if head is None:
        raise LeaseLost(f"{work_id} is no longer owned under epoch {epoch}; nothing was recorded")
    leaf = build_leaf(
        kind,
        body,
        job=work_id,
        seq=head.ledger_size,
        attempt=head.attempt,
        epoch=epoch,
        prev=head.ledger_head,
        ts_db=head.ts_db,
        ts_worker=ts_worker,
    )
    session.execute(insert(LedgerLeaf).values(work_id=work_id, seq=head.ledger_size, leaf=leaf))
    moved = session.execute(
        update(Work)
        .where(Work.id == work_id, Work.epoch == epoch, Work.ledger_size == head.ledger_size)
        .values(ledger_size=head.ledger_size + 1, ledger_head=chain_hash(leaf))
        .returning(Work.id)
    ).one_or_none()
    if moved is None:
        raise LeaseLost(f"the ledger of {work_id} moved under epoch {epoch}; nothing was recorded")


def iterate_leaves(session: Session, work_id: str) -> Iterator[bytes]:
    """Yield the exact bytes of every leaf in order."""
    yield from session.scalars(
        select(LedgerLeaf.leaf).where(LedgerLeaf.work_id == work_id).order_by(LedgerLeaf.seq)
    ).yield_per(1000)


def save_risk_table(session: Session, job_id: str, entries: Iterable[bytes]) -> None:
    """Keep the entries that the leaf `risk.table` commits to."""
    rows = [{"job_id": job_id, "position": at, "entry": entry} for at, entry in enumerate(entries)]
    session.execute(insert(RiskRow), rows)


def load_risk_table(session: Session, job_id: str) -> list[bytes]:
    """Return the entries of a job's risk table in order; empty before the reference pass."""
    return list(
        session.scalars(select(RiskRow.entry).where(RiskRow.job_id == job_id).order_by(RiskRow.position))
    )
