"""Saying at a job that waits for its signature why there is none: the notary is away, or refuses."""

from datetime import UTC, datetime

from sqlalchemy import func, null, select, update
from sqlalchemy.orm import Session

from app.database import Database, read_only, unit_of_work
from app.domain.job import State, WorkKind
from app.jobs.repository import add_event, load_job
from app.models.base import now_ms
from app.models.work import Work, Worker
from app.notary.repository import get_refusal, list_refused_jobs
from app.notary.service import NOTARY
from app.work.repository import list_state

SILENCE_MS = 30_000
"""A notary that says nothing for this long is not there."""


def tell_unsigned(database: Database) -> None:
    """Note at each such job what it waits for, with a line in its log when that begins."""
    with read_only(database) as session:
        waiting = [work for work in list_state(session, State.SIGNING) if work.kind == WorkKind.TRAIN]
        general = why_unsigned(session) if waiting else None
        refused = list_refused_jobs(session) if waiting else {}
    for work in waiting:
        reason = general
        if reason is None and work.id in refused:
            reason = (
                f"the notary refuses to sign for this job since {_show(refused[work.id].since)}; the operator's"
                " `tether doctor` says why"
            )
        if (work.turn or {}).get("waits_for") != reason:
            with unit_of_work(database) as session:
                _note(session, work.id, reason)


def why_unsigned(session: Session) -> str | None:
    """Return why nothing is signed, in words for everybody; None where a notary is at work."""
    refusal = get_refusal(session)
    if refusal is not None:
        # Its reason names folders of the operator's.
        return f"the notary refuses to sign since {_show(refusal.since)}; the operator's `tether doctor` says why"
    seen_ms, now = session.execute(
        select(func.max(Worker.seen_at_ms), now_ms()).where(Worker.queue == NOTARY)
    ).one()
    if seen_ms is None:
        return "no notary is running, nor was one before; the operator starts one with: tether notary"
    if seen_ms > now - SILENCE_MS:
        return None
    seen = datetime.fromtimestamp(seen_ms / 1000, UTC)
    return f"no notary has been running since {_show(seen)}; the operator starts one with: tether notary"


def _note(session: Session, work_id: str, reason: str | None) -> None:
    turn = null() if reason is None else {"waits_for": reason}
    still_waits = session.execute(
        update(Work)
        .where(Work.id == work_id, Work.state == State.SIGNING)
        .values(turn=turn)
        .returning(Work.id)
    ).one_or_none()
    if still_waits is None or reason is None:
        return
    message = f"The record of the job is complete and not signed: {reason}. Nothing is lost: it succeeds once it is signed"
    add_event(session, load_job(session, work_id), message, level="warn")


def _show(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
