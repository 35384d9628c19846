"""The rules of retention: which records may go, in which order, and what holds them.

A pruning has two halves. First the installation's log is told what goes; when that is under a signed checkpoint, the bytes
go. So nothing is ever missing that no signature accounts for.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy.orm import Session

from app.audit.repository import iterate_leaves
from app.database import Database, read_only, unit_of_work
from app.domain.ledger import kind_of, parse_leaf
from app.domain.retention import (
    PRUNED_EVENT,
    RECORDS,
    STEPS,
    PrunedTree,
    build_pruning,
    digest_of_pruning,
    format_pruned,
    is_pruned_in,
    parse_pruned,
    parse_pruning,
    record_hash,
)
from app.errors import Conflict, InvalidRequest, NotFound, TetherError
from app.models.base import utc_now
from app.models.job import Job
from app.models.retention import LegalHold, PrunedJob
from app.notary.repository import add_event, get_signed_act
from app.notary.service import OPERATOR_AT_THE_MACHINE
from app.projects.repository import get_project
from app.retention import repository
from app.settings import Settings
from app.work.repository import get_work

log = logging.getLogger(__name__)

SIGNATURE_S = 60.0
"""How long a pruning waits for the notary."""
POLL_S = 0.2


class Plan(NamedTuple):
    """What pruning a job would take."""

    job_id: str
    scope: str
    records: int
    """Those that go now; what went before is not counted."""
    size_bytes: int
    pruning: bytes
    lines: dict[int, bytes]
    """What stands in the place of each record that goes, by its seq."""


# --- pruning ----------------------------------------------------------------------------------------------


def list_due(database: Database, settings: Settings) -> list[Plan]:
    """Return what may be pruned now, oldest job first. Jobs under a legal hold are left out."""
    with read_only(database) as session:
        plans = (_plan(session, job, scope) for job, scope in _list_old(session, settings))
        # Of the lines there may be very many, and nobody asks for them before they are written.
        return [plan._replace(lines={}) for plan in plans if plan]


def announce(database: Database, settings: Settings) -> int:
    """Tell the log of everything that is due, a job at a time; return of how many jobs it was told."""
    with read_only(database) as session:
        due = [(job.id, scope) for job, scope in _list_old(session, settings)]
        told_elsewhere = [pruned.number for pruned in repository.list_told_elsewhere(session)]
    told = 0
    for job_id, scope in due:
        with unit_of_work(database) as session:
            job = session.get_one(Job, job_id)
            plan = None if repository.find_hold(session, job) else _plan(session, job, scope)
            if plan is not None:
                event = _tell(session, job_id, plan.pruning)
                repository.add_pruning(session, job, scope=scope, pruning=plan.pruning, event=event)
                told += 1
    for number in told_elsewhere:
        with unit_of_work(database) as session:
            pruned = session.get_one(PrunedJob, number)
            pruned.event = _tell(session, pruned.job_id, pruned.pruning)
    return told


def carry_out(database: Database, *, wait_s: float = SIGNATURE_S) -> tuple[list[PrunedJob], list[PrunedJob]]:
    """Prune what the log was told of and a signed checkpoint covers, waiting for the notary; return what went and what did not.

    What is under a legal hold by now stays.
    """
    done: list[PrunedJob] = []
    deadline = time.monotonic() + wait_s
    while True:
        with read_only(database) as session:
            pending = repository.list_pending(session)
            signed = [each.number for each in pending if get_signed_act(session, each.event) is not None]
        before = len(done)
        for number in signed:
            try:
                done += _prune(database, number)
            except TetherError as error:
                log.error("pruning %d cannot be carried out: %s", number, error)
        with read_only(database) as session:
            left = [each for each in repository.list_pending(session) if not _is_held(session, each)]
            held = [each for each in repository.list_pending(session) if _is_held(session, each)]
        stuck = bool(signed) and len(done) == before
        if not left or stuck or time.monotonic() > deadline:
            return done, [*left, *held]
        time.sleep(POLL_S)


def _list_old(session: Session, settings: Settings) -> Iterator[tuple[Job, str]]:
    """Yield the jobs that are old enough and under no hold, each with how much of it may go."""
    now = utc_now()
    seen = set()
    for scope, days, without in (
        (RECORDS, settings.retention_records_days, (RECORDS,)),
        (STEPS, settings.retention_steps_days, (STEPS, RECORDS)),
    ):
        for job in repository.list_ended(session, now - timedelta(days=days), without=without):
            if job.id not in seen and repository.find_hold(session, job) is None:
                seen.add(job.id)
                yield job, scope


def _plan(session: Session, job: Job, scope: str) -> Plan | None:
    """Return what pruning a job takes; None where there is nothing to take."""
    tree = PrunedTree()
    counts: Counter[str] = Counter()
    before = repository.get_newest_done(session, job.id)
    if before is not None:
        counts.update(parse_pruning(before.pruning)["counts"])
    lines: dict[int, bytes] = {}
    size_bytes = 0
    for seq, line in enumerate(iterate_leaves(session, job.id)):
        if parse_pruned(line) is not None:
            tree.append(seq, record_hash(line))
            continue
        kind = kind_of(parse_leaf(line))
        if is_pruned_in(scope, kind):
            digest = record_hash(line)
            tree.append(seq, digest)
            counts[kind] += 1
            lines[seq] = format_pruned(digest)
            size_bytes += len(line)
    if not lines:
        return None
    pruning = build_pruning(job=job.id, scope=scope, counts=counts, tree=tree)
    return Plan(job.id, scope, len(lines), size_bytes, pruning, lines)


def _tell(session: Session, job_id: str, pruning: bytes) -> int:
    event = add_event(
        session,
        PRUNED_EVENT,
        actor=OPERATOR_AT_THE_MACHINE,
        subject=job_id,
        sha256=digest_of_pruning(pruning),
    )
    session.flush()
    return event.number


def _is_held(session: Session, pruned: PrunedJob) -> bool:
    return repository.find_hold(session, session.get_one(Job, pruned.job_id)) is not None


def _prune(database: Database, number: int) -> list[PrunedJob]:
    with unit_of_work(database) as session:
        pruned = session.get_one(PrunedJob, number)
        # Whoever places a hold locks the project too: it comes before all of this or after it.
        get_project(session, session.get_one(Job, pruned.job_id).project_id, lock=True)
        get_work(session, pruned.job_id, lock=True)
        job = session.get_one(Job, pruned.job_id, populate_existing=True)
        if pruned.done_at is not None or _is_held(session, pruned):
            return []
        plan = _plan(session, job, pruned.scope)
        if plan is None or plan.pruning != pruned.pruning:
            raise Conflict(
                f"the records of {job.id} are not those that the log was told of, so none of them was touched; compare the"
                " evidence of the job with an earlier bundle or receipt of it"
            )
        repository.replace_leaves(session, job.id, plan.lines)
        repository.forget_steps(session, job.id)
        if pruned.scope == RECORDS:
            repository.forget_rows(session, job.id)
        pruned.done_at = job.pruned_at = utc_now()
        return [pruned]


# --- legal holds ------------------------------------------------------------------------------------------


def place_hold(session: Session, *, job_id: str | None, project_id: str | None, reason: str) -> LegalHold:
    """Keep a job, or everything of a project, from being pruned, erased and deleted. Raises NotFound."""
    if not reason.strip():
        raise InvalidRequest("reason: say why; the log has its digest", param="reason")
    if job_id is not None:
        job = session.get(Job, job_id)
        if job is None:
            raise NotFound(f"no job has the id {job_id!r}")
        project_id = job.project_id
    # Whoever erases or prunes locks the project too, and so sees this hold or is done before it.
    if project_id is None or get_project(session, project_id, lock=True) is None:
        raise NotFound(f"no project has the id {project_id!r}; the projects are in: tether projects list")
    hold = repository.add_hold(session, project_id=project_id, job_id=job_id, reason=reason)
    _note(session, "legal_hold.placed", hold)
    return hold


def release_hold(session: Session, hold_id: str) -> LegalHold:
    """End a hold. Raises NotFound and Conflict."""
    hold = repository.get_hold(session, hold_id)
    if hold is None:
        raise NotFound(f"no legal hold has the id {hold_id!r}; they are in: tether ledger holds")
    if hold.released_at is not None:
        raise Conflict(f"the legal hold {hold_id} was released on {hold.released_at:%Y-%m-%d}")
    hold.released_at = utc_now()
    _note(session, "legal_hold.released", hold)
    return hold


def _note(session: Session, event: str, hold: LegalHold) -> None:
    """Tell the log; of the reason it gets the digest."""
    add_event(
        session,
        event,
        actor=OPERATOR_AT_THE_MACHINE,
        subject=hold.job_id or hold.project_id,
        sha256=hashlib.sha256(hold.reason.encode()).hexdigest(),
    )
