"""Queries of the installation's log."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session

from app.domain.installation_log import build_event, parse_log_leaf
from app.domain.job import RECORDED, State, WorkKind
from app.models.attestation import Attestation
from app.models.base import now_ms, utc_now
from app.models.installation_log import (
    InstallationLog,
    LogCheckpoint,
    LogEvent,
    LogHead,
    LogLeaf,
    NotaryRefusal,
    NotedDigest,
    WeightDownload,
)
from app.models.work import Work

COMMAND_LINE = "command-line"
"""Who acts where an operator uses the machine itself, and no key."""
START = "start"
"""Who acts where a process does it when it starts."""
RELEASED = "job.released"
"""The act by which a held job's weights may leave."""
LOCK = 0x7E7E_106
"""The advisory lock of whoever writes the log."""
OF_EVERYTHING = 1
"""The number of the refusal to sign anything; those of single jobs have others."""
OF_A_JOB = ": "
"""What divides the job from the reason where a refusal is of one job."""


class DueHead(NamedTuple):
    """A job whose ledger has grown since its last head in the log."""

    work_id: str
    size: int
    state: str
    previous: int | None


class JobRefusal(NamedTuple):
    """That the notary signs nothing about one job."""

    since: datetime
    reason: str


def lock_log(session: Session) -> None:
    """Let nobody else write the log before this transaction ends. On SQLite every writer is alone anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})


def get_log(session: Session) -> InstallationLog | None:
    """Return the log that is written to: the newest one."""
    return session.scalars(
        select(InstallationLog).order_by(InstallationLog.number.desc()).limit(1)
    ).one_or_none()


def add_log(session: Session, origin: str) -> InstallationLog:
    """Begin a log."""
    log = InstallationLog(origin=origin, created_at=utc_now())
    session.add(log)
    session.flush()
    return log


def iterate_log(session: Session, log: int, *, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Yield the exact bytes of a log's leaves from `start` on, in order."""
    query = select(LogLeaf.leaf).where(LogLeaf.log == log, LogLeaf.index >= start).order_by(LogLeaf.index)
    if end is not None:
        query = query.where(LogLeaf.index < end)
    yield from session.scalars(query).yield_per(1000)


def count_leaves(session: Session, log: int) -> int:
    """Return how many leaves a log has."""
    return session.scalars(
        select(func.coalesce(func.max(LogLeaf.index) + 1, 0)).where(LogLeaf.log == log)
    ).one()


def add_event(
    session: Session, event: str, *, actor: str | None, subject: str | None = None, sha256: str | None = None
) -> LogEvent:
    """Note an act that belongs into the log, in the transaction of the act: it is there if and only if the act is."""
    ts_db = session.scalars(select(now_ms())).one()
    added = LogEvent(leaf=build_event(event, actor=actor, subject=subject, sha256=sha256, ts_db=ts_db))
    session.add(added)
    return added


def note_change(session: Session, name: str, event: str, *, actor: str, sha256: str) -> None:
    """Note an act unless the digest of what it is about is the one of the last time."""
    known = session.get(NotedDigest, name)
    if known is not None and known.sha256 == sha256:
        return
    session.merge(NotedDigest(name=name, sha256=sha256))
    add_event(session, event, actor=actor, sha256=sha256)


def is_download_due(session: Session, key_id: str, sha256: str, window_ms: int) -> bool:
    """Say whether the log was last told longer ago than the window that this key downloads this artefact."""
    return not session.scalars(
        select(WeightDownload.sha256).where(
            WeightDownload.key_id == key_id,
            WeightDownload.sha256 == sha256,
            WeightDownload.noted_at_ms > now_ms() - window_ms,
        )
    ).all()


def take_download(session: Session, key_id: str, sha256: str, window_ms: int) -> bool:
    """Begin a window for a key and an artefact; False where somebody else just began it."""
    insert = sqlite_insert if session.get_bind().dialect.name == "sqlite" else postgresql_insert
    taken = (
        insert(WeightDownload)
        .values(key_id=key_id, sha256=sha256, noted_at_ms=now_ms())
        .on_conflict_do_update(
            index_elements=[WeightDownload.key_id, WeightDownload.sha256],
            set_={"noted_at_ms": now_ms()},
            where=WeightDownload.noted_at_ms <= now_ms() - window_ms,
        )
        .returning(WeightDownload.sha256)
    )
    return session.execute(taken).one_or_none() is not None


def is_in_log(session: Session, log: int, subject: str, *, end: int | None = None) -> bool:
    """Say whether an act on this subject is in a log, or among its first `end` leaves.

    The bytes are searched as they are, because all of them are canonical.
    """
    wanted = b'"subject":"%s"' % subject.encode()
    return any(wanted in leaf for leaf in iterate_log(session, log, end=end))


def is_known_subject(session: Session, log: int, subject: str) -> bool:
    """Say whether an act on this subject is in a log, or waits to come into one."""
    wanted = b'"subject":"%s"' % subject.encode()
    waits = any(wanted in event.leaf for event in list_pending_events(session))
    return waits or is_in_log(session, log, subject)


def list_pending_events(session: Session) -> Sequence[LogEvent]:
    """Return the acts that are in no log yet, in the order in which they were noted."""
    return session.scalars(select(LogEvent).where(LogEvent.log.is_(None)).order_by(LogEvent.number)).all()


def list_due_heads(
    session: Session, log: int, interval_ms: int, *, ended_after: datetime | None = None
) -> list[DueHead]:
    """Return the jobs that need a head: those whose record is complete, and those whose last one is older than the interval.

    With `ended_after`, jobs that ended before are not looked at; there may be very many of them.
    """
    newest = (
        select(func.max(LogHead.size))
        .where(LogHead.log == log, LogHead.work_id == Work.id)
        .correlate(Work)
        .scalar_subquery()
    )
    query = (
        select(Work.id, Work.ledger_size, Work.state, LogHead.index)
        .outerjoin(LogHead, and_(LogHead.log == log, LogHead.work_id == Work.id, LogHead.size == newest))
        .where(
            Work.kind == WorkKind.TRAIN,
            Work.ledger_size > func.coalesce(LogHead.size, 0),
            or_(
                LogHead.size.is_(None),
                Work.state.in_(RECORDED),
                LogHead.made_at_ms <= now_ms() - interval_ms,
            ),
        )
    )
    if ended_after is not None:
        query = query.where(or_(Work.finished_at.is_(None), Work.finished_at > ended_after))
    return [DueHead(*row) for row in session.execute(query.order_by(Work.created_at, Work.id))]


def list_signed(session: Session) -> Sequence[str]:
    """Return the jobs that only wait for the notary, and whose whole record and adapter it has now signed."""
    return _list_signed(session, Attestation.work_id.is_not(None))


def list_unattested(session: Session) -> Sequence[str]:
    """Return the jobs whose whole record the notary has signed, and nothing yet about their adapter."""
    return _list_signed(session, Attestation.work_id.is_(None))


def _list_signed(session: Session, attested: ColumnElement[bool]) -> Sequence[str]:
    log = get_log(session)
    checkpoint = get_checkpoint(session, log.number) if log else None
    if log is None or checkpoint is None:
        return []
    return session.scalars(
        select(Work.id)
        .join(LogHead, and_(LogHead.work_id == Work.id, LogHead.size == Work.ledger_size))
        .outerjoin(Attestation, Attestation.work_id == Work.id)
        .where(
            Work.state == State.SIGNING, LogHead.log == log.number, LogHead.index < checkpoint.size, attested
        )
        .order_by(Work.created_at)
    ).all()


def list_heads(session: Session, log: int, work_id: str) -> Sequence[LogHead]:
    """Return where a job's heads stand in a log, in order."""
    return session.scalars(
        select(LogHead).where(LogHead.log == log, LogHead.work_id == work_id).order_by(LogHead.size)
    ).all()


def get_signed_head(session: Session, log: int, work_id: str) -> bytes | None:
    """Return the leaf of a job's newest head that is under a signed checkpoint of a log."""
    checkpoint = get_checkpoint(session, log)
    return session.scalars(
        select(LogLeaf.leaf)
        .join(LogHead, and_(LogHead.log == LogLeaf.log, LogHead.index == LogLeaf.index))
        .where(LogHead.log == log, LogHead.work_id == work_id)
        .where(LogHead.index < (checkpoint.size if checkpoint else 0))
        .order_by(LogHead.size.desc())
        .limit(1)
    ).one_or_none()


def get_checkpoint(session: Session, log: int) -> LogCheckpoint | None:
    """Return the newest signed checkpoint of a log."""
    return session.scalars(
        select(LogCheckpoint).where(LogCheckpoint.log == log).order_by(LogCheckpoint.size.desc()).limit(1)
    ).one_or_none()


def get_signed_act(session: Session, event: int) -> bytes | None:
    """Return the leaf of the act of this number once it is under a signed checkpoint; None before."""
    return session.scalars(
        select(LogLeaf.leaf)
        .join(LogEvent, and_(LogEvent.log == LogLeaf.log, LogEvent.leaf == LogLeaf.leaf))
        .join(LogCheckpoint, and_(LogCheckpoint.log == LogLeaf.log, LogCheckpoint.size > LogLeaf.index))
        .where(LogEvent.number == event)
        .limit(1)
    ).one_or_none()


def is_release_signed(session: Session, event: int, job_id: str) -> bool:
    """Say whether the act of this number is the release of a job, and under a signed checkpoint."""
    leaf = get_signed_act(session, event)
    if leaf is None:
        return False
    record = parse_log_leaf(leaf)
    return (record.get("event"), record.get("subject")) == (RELEASED, job_id)


def list_signers(session: Session) -> dict[str, list[str]]:
    """Return the ids of the keys that signed each log, by its origin; logs and keys in order."""
    rows = session.execute(
        select(InstallationLog.origin, LogCheckpoint.key)
        .outerjoin(LogCheckpoint, LogCheckpoint.log == InstallationLog.number)
        .group_by(InstallationLog.number, InstallationLog.origin, LogCheckpoint.key)
        .order_by(InstallationLog.number, func.min(LogCheckpoint.size))
    )
    found: dict[str, list[str]] = {}
    for origin, key in rows:
        found.setdefault(origin, []).extend([key] if key else [])
    return found


def note_refusal(session: Session, reason: str) -> None:
    """Note that the notary signs nothing; since when, only the first of several says."""
    known = session.get(NotaryRefusal, OF_EVERYTHING)
    if known is None:
        session.add(NotaryRefusal(number=OF_EVERYTHING, since=utc_now(), reason=reason))
    else:
        known.reason = reason


def take_back_refusal(session: Session) -> None:
    """Note that the notary signs."""
    session.execute(delete(NotaryRefusal).where(NotaryRefusal.number == OF_EVERYTHING))


def get_refusal(session: Session) -> NotaryRefusal | None:
    """Return since when the notary signs nothing, and why; None where it does, or where there is none to say so."""
    return session.get(NotaryRefusal, OF_EVERYTHING)


def note_refused_jobs(session: Session, reasons: Mapping[str, str]) -> None:
    """Note about which jobs the notary signs nothing, and why; what was noted of others is taken back."""
    rows = session.scalars(_REFUSED_JOBS).all()
    wanted = {f"{work_id}{OF_A_JOB}{reason}" for work_id, reason in reasons.items()}
    for row in rows:
        if row.reason not in wanted:
            session.delete(row)
    last = max([OF_EVERYTHING, *(row.number for row in rows)])
    for number, reason in enumerate(sorted(wanted - {row.reason for row in rows}), last + 1):
        session.add(NotaryRefusal(number=number, since=utc_now(), reason=reason))


def list_refused_jobs(session: Session) -> dict[str, JobRefusal]:
    """Return the jobs about which the notary signs nothing, and since when and why."""
    found = {}
    for row in session.scalars(_REFUSED_JOBS):
        work_id, _, reason = row.reason.partition(OF_A_JOB)
        found[work_id] = JobRefusal(row.since, reason)
    return found


_REFUSED_JOBS = (
    select(NotaryRefusal).where(NotaryRefusal.number != OF_EVERYTHING).order_by(NotaryRefusal.number)
)


def take_pending_events(session: Session, log: int) -> list[bytes]:
    """Say of the acts that are in no log yet that they are in this one; return their leaves in the order of the acts.

    It is one statement, so that an act whose transaction ends meanwhile stays for the next time.
    """
    taken = session.execute(
        update(LogEvent)
        .where(LogEvent.log.is_(None))
        .values(log=log)
        .returning(LogEvent.number, LogEvent.leaf)
        .execution_options(synchronize_session=False)
    )
    return [leaf for _, leaf in sorted((number, leaf) for number, leaf in taken)]
