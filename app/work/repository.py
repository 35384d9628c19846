"""The lease machine: every query that claims, renews, moves or repairs a row of work.

Leases are judged by the database's clock alone. Each write of an owner is fenced by its epoch: when a row was
taken over, the update matches nothing and LeaseLost is raised.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import case, null, or_, select, update
from sqlalchemy.orm import Session

from app.domain.job import OWNED, Desired, State, WorkKind, check_transition
from app.domain.ledger import NO_LEAF
from app.errors import LeaseLost
from app.models.base import new_id, now_ms, utc_now
from app.models.tenancy import Span
from app.models.work import Work, Worker


def add_work(
    session: Session,
    *,
    kind: WorkKind,
    queue: str,
    project_id: str,
    args: dict[str, Any],
    state: State = State.QUEUED,
    work_id: str | None = None,
    priority: int = 0,
) -> Work:
    """Insert a row of work. Announcing it is the caller's."""
    work = Work(
        id=work_id or new_id("work-"),
        project_id=project_id,
        kind=kind,
        queue=queue,
        args=args,
        state=state,
        desired=Desired.RUN,
        priority=priority,
        epoch=0,
        attempt=0,
        attempts_without_progress=0,
        infrastructure_failures=0,
        ledger_size=0,
        ledger_head=NO_LEAF,
        created_at=utc_now(),
    )
    session.add(work)
    session.flush()
    mark_knocked(session, work.id)
    return work


def get_work(session: Session, work_id: str, *, lock: bool = False) -> Work | None:
    """Return a row of work as it stands now; with `lock`, nobody else changes it before this transaction ends."""
    return session.get(Work, work_id, populate_existing=True, with_for_update=lock)


def claim(session: Session, work_id: str, *, owner: str, lease_ms: int) -> Work | None:
    """Take a queued row: raise its epoch, count the attempt, start the lease. None where it is not queued."""
    claimed = session.execute(
        update(Work)
        .where(Work.id == work_id, Work.state == State.QUEUED, Work.desired == Desired.RUN)
        .values(
            state=State.STARTING,
            epoch=Work.epoch + 1,
            attempt=Work.attempt + 1,
            attempts_without_progress=Work.attempts_without_progress + 1,
            owner=owner,
            lease_until_ms=now_ms() + lease_ms,
            turn=null(),
        )
        .returning(Work.id)
    ).one_or_none()
    if claimed is None:
        return None
    work = get_work(session, work_id)
    if work is None:
        return None
    if work.started_at is None:
        work.started_at = utc_now()
    session.add(
        Span(
            work_id=work.id,
            epoch=work.epoch,
            project_id=work.project_id,
            queue=work.queue,
            started_ms=now_ms(),
            until_ms=now_ms(),
        )
    )
    session.flush()
    return work


def renew(session: Session, work_id: str, epoch: int, *, lease_ms: int) -> Desired:
    """Extend the lease and return what the client desires. Raises LeaseLost where the row was taken over."""
    row = session.execute(
        update(Work)
        .where(Work.id == work_id, Work.epoch == epoch, Work.state.in_(OWNED))
        .values(lease_until_ms=now_ms() + lease_ms)
        .returning(Work.desired)
    ).one_or_none()
    if row is None:
        raise LeaseLost(f"{work_id} is no longer owned under epoch {epoch}; another process took it over")
    _extend_span(session, work_id, epoch)
    return Desired(row.desired)


def _extend_span(session: Session, work_id: str, epoch: int) -> None:
    """Count the owner's time up to now. Of an owner that fell silent, the time up to its last sign of life counts."""
    session.execute(
        update(Span).where(Span.work_id == work_id, Span.epoch == epoch).values(until_ms=now_ms())
    )


def move(session: Session, work: Work, after: State, *, error: Mapping[str, Any] | None = None) -> None:
    """Change the state by compare-and-set on (state, epoch). Raises LeaseLost where the row changed meanwhile.

    Leaving the owned states gives up the lease. `work` is refreshed.
    """
    before = State(work.state)
    check_transition(before, after)
    values: dict[str, Any] = {"state": after}
    if error is not None:
        values["error"] = dict(error)
    if after not in OWNED:
        values |= {"owner": None, "lease_until_ms": None}
    if after in (State.SUCCEEDED, State.FAILED, State.CANCELLED):
        values["finished_at"] = utc_now()
    moved = session.execute(
        update(Work)
        .where(Work.id == work.id, Work.epoch == work.epoch, Work.state == before)
        .values(**values)
        .returning(Work.id)
    ).one_or_none()
    if moved is None:
        raise LeaseLost(f"{work.id} left {before} under epoch {work.epoch} while it was to become {after}")
    if before in OWNED and after not in OWNED:
        _extend_span(session, work.id, work.epoch)
    session.refresh(work)


def take_over(session: Session, work: Work) -> bool:
    """Raise the epoch, so that a former owner is fenced. False where somebody else was quicker."""
    taken = session.execute(
        update(Work)
        .where(Work.id == work.id, Work.epoch == work.epoch, Work.state == work.state)
        .values(epoch=Work.epoch + 1)
        .returning(Work.id)
    ).one_or_none()
    session.refresh(work)
    return taken is not None


def take_over_expired(session: Session, work: Work) -> bool:
    """Raise the epoch of owned work whose lease ran out. False where it was renewed or taken meanwhile."""
    taken = session.execute(
        update(Work)
        .where(Work.id == work.id, Work.epoch == work.epoch, Work.state.in_(OWNED))
        .where(Work.lease_until_ms < now_ms())
        .values(epoch=Work.epoch + 1)
        .returning(Work.id)
    ).one_or_none()
    session.refresh(work)
    return taken is not None


def list_owned(session: Session, owner: str) -> Sequence[str]:
    """Return the ids of what a process holds a lease of."""
    return session.scalars(select(Work.id).where(Work.owner == owner, Work.state.in_(OWNED))).all()


def holds_lease(session: Session, owner: str) -> bool:
    """Say whether a process holds a lease that has not run out, whether or not anybody took the work over meanwhile."""
    held = select(Work.id).where(Work.owner == owner, Work.state.in_(OWNED), Work.lease_until_ms >= now_ms())
    return session.scalars(held).first() is not None


def take_over_from(session: Session, work: Work, owner: str) -> bool:
    """Raise the epoch of work whose owner is known to be dead. False where it has another one by now, or none."""
    taken = session.execute(
        update(Work)
        .where(Work.id == work.id, Work.epoch == work.epoch, Work.state.in_(OWNED), Work.owner == owner)
        .values(epoch=Work.epoch + 1)
        .returning(Work.id)
    ).one_or_none()
    session.refresh(work)
    return taken is not None


def set_desired(session: Session, work_id: str, desired: Desired) -> None:
    """Say what the client wants; the owner reads it with its next heartbeat. A cancellation is never taken back."""
    wanted = case((Work.desired == Desired.CANCEL, Desired.CANCEL), else_=desired)
    session.execute(update(Work).where(Work.id == work_id).values(desired=wanted))


def note_progress(session: Session, work_id: str, epoch: int) -> None:
    """Start the counts of failures anew, because a newer checkpoint is committed."""
    session.execute(
        update(Work)
        .where(Work.id == work_id, Work.epoch == epoch)
        .values(attempts_without_progress=0, infrastructure_failures=0)
    )


def list_expired(session: Session) -> Sequence[Work]:
    """Return owned rows whose lease ran out."""
    return session.scalars(
        select(Work).where(Work.state.in_(OWNED), Work.lease_until_ms < now_ms()).order_by(Work.created_at)
    ).all()


def list_overlong(session: Session, lease_ms: int) -> Sequence[Work]:
    """Return owned rows whose lease ends later than one that begins now: the database's clock was set back meanwhile."""
    return session.scalars(
        select(Work).where(Work.state.in_(OWNED), Work.lease_until_ms > now_ms() + lease_ms)
    ).all()


def shorten_lease(session: Session, work: Work, lease_ms: int) -> None:
    """Let the lease under this epoch end no later than one that begins now. An owner that lives renews it as ever."""
    session.execute(
        update(Work)
        .where(Work.id == work.id, Work.epoch == work.epoch, Work.lease_until_ms > now_ms() + lease_ms)
        .values(lease_until_ms=now_ms() + lease_ms)
    )


def list_unwanted(session: Session) -> Sequence[Work]:
    """Return queued rows that are not to run: the wish to cancel or pause them came while they changed hands."""
    return session.scalars(select(Work).where(Work.state == State.QUEUED, Work.desired != Desired.RUN)).all()


def list_unannounced(session: Session, after_ms: int) -> Sequence[Work]:
    """Return queued rows that may be claimed and were last announced longer than `after_ms` ago.

    One that was announced in the future was so before the database's clock was set back. How long it has waited nobody
    knows, so it waits no longer.
    """
    was_set_back = Work.knocked_at_ms > now_ms()
    return session.scalars(
        select(Work)
        .where(
            Work.state == State.QUEUED,
            Work.desired == Desired.RUN,
            or_(Work.not_before_ms.is_(None), Work.not_before_ms <= now_ms(), was_set_back),
            or_(Work.knocked_at_ms.is_(None), Work.knocked_at_ms < now_ms() - after_ms, was_set_back),
        )
        .order_by(Work.created_at)
    ).all()


def list_state(session: Session, state: State) -> Sequence[Work]:
    """Return the rows in a state, oldest first."""
    return session.scalars(select(Work).where(Work.state == state).order_by(Work.created_at)).all()


def mark_knocked(session: Session, work_id: str) -> None:
    """Note that the queue is being told about this row."""
    session.execute(update(Work).where(Work.id == work_id).values(knocked_at_ms=now_ms()))


def record_worker(session: Session, *, worker_id: str, queue: str, host: str) -> None:
    """Note that a worker lives now."""
    seen = session.execute(
        update(Worker).where(Worker.id == worker_id).values(seen_at_ms=now_ms()).returning(Worker.id)
    ).one_or_none()
    if seen is None:
        session.add(Worker(id=worker_id, queue=queue, host=host, seen_at_ms=now_ms()))


def remove_worker(session: Session, worker_id: str) -> None:
    """Note that a worker said goodbye."""
    worker = session.get(Worker, worker_id)
    if worker is not None:
        session.delete(worker)


def list_live_queues(session: Session, within_ms: int) -> set[str]:
    """Return the queues that have a worker which was seen lately."""
    return set(session.scalars(select(Worker.queue).where(Worker.seen_at_ms > now_ms() - within_ms)))
