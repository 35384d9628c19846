"""Queries of the ledger: the fenced append, and reading it back."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sqlalchemy import and_, bindparam, insert, select, update
from sqlalchemy.orm import Session

from app.domain.ledger import build_leaf, chain_hash
from app.errors import LeaseLost
from app.models.base import now_ms
from app.models.job import LedgerLeaf, RiskRow
from app.models.work import Work


class Owned(NamedTuple):
    """What the owner of a piece of work finds in its row, which is locked until the transaction ends."""

    id: str
    project_id: str
    desired: str


_WORK, _LEAVES = (Work.metadata.tables[each.__tablename__] for each in (Work, LedgerLeaf))
_OURS = and_(_WORK.c.id == bindparam("work"), _WORK.c.epoch == bindparam("under"))
# Executed for every step, and so made once.
_LOCK_HEAD = (
    select(
        *(_WORK.c[name] for name in ("project_id", "desired", "ledger_size", "ledger_head", "attempt")),
        now_ms().label("ts_db"),
    )
    .where(_OURS)
    .with_for_update()
)
_ADD_LEAF = insert(_LEAVES)
_MOVE_HEAD = (
    update(_WORK)
    .where(_OURS, _WORK.c.ledger_size == bindparam("before"))
    .values(ledger_size=bindparam("size"), ledger_head=bindparam("head"))
)


def append_leaf(
    session: Session,
    work_id: str,
    *,
    epoch: int,
    kind: str,
    body: Mapping[str, Any],
    ts_worker: int | None = None,
) -> Owned:
    """Append one leaf to the ledger of a piece of work, fenced by its epoch. Objects of the row do not notice.

    The head moves by compare-and-set in the transaction that inserts the leaf, so there is no gap, no
    duplicate and no stale writer. Raises LeaseLost where the epoch is no longer ours.
    """
    ours = {"work": work_id, "under": epoch}
    connection = session.connection()
    head = connection.execute(_LOCK_HEAD, ours).one_or_none()
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
    connection.execute(_ADD_LEAF, {"work_id": work_id, "seq": head.ledger_size, "leaf": leaf})
    moved = connection.execute(
        _MOVE_HEAD,
        {**ours, "before": head.ledger_size, "size": head.ledger_size + 1, "head": chain_hash(leaf)},
    )
    if moved.rowcount != 1:
        raise LeaseLost(f"the ledger of {work_id} moved under epoch {epoch}; nothing was recorded")
    return Owned(work_id, head.project_id, head.desired)


def iterate_leaves(session: Session, work_id: str, *, start: int = 0) -> Iterator[bytes]:
    """Yield the exact bytes of every leaf from `start` on, in order; of one that was pruned, the line of its hash."""
    yield from session.scalars(
        select(LedgerLeaf.leaf)
        .where(LedgerLeaf.work_id == work_id, LedgerLeaf.seq >= start)
        .order_by(LedgerLeaf.seq)
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
