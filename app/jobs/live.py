"""What changes while a job runs, as those who watch it see it: read for all of them at once, or by one who was away."""

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from app.conditional import encode, etag_of
from app.database import Database, read_only
from app.domain.job import TERMINAL, State
from app.jobs import repository, service
from app.jobs.messages import message
from app.jobs.repository import Head
from app.jobs.schemas import event_to_wire, job_to_wire
from app.jobs.waker import Look, Update
from app.keys.repository import list_usable_keys
from app.models.base import utc_now
from app.models.job import Event, Job

EVENTS_A_LOOK = 200
"""What a look finds beyond them comes with the next one."""


class Reply(NamedTuple):
    """A job as it is sent."""

    etag: str
    body: bytes


class Backlog(NamedTuple):
    """What a stream that begins has to send before it waits."""

    job: dict[str, Any]
    is_over: bool
    events: Sequence[tuple[int, bytes]]
    """Number and message of each, oldest first."""
    has_more: bool
    step: bytes
    """The message of the newest step, if there is one."""


def find_start(database: Database, project_id: str, job_id: str, after: str | None) -> int:
    """Return the number of the event after which a stream begins; 0 for the first.

    Raises NotFound and InvalidRequest.
    """
    with read_only(database) as session:
        job = service.get_job(session, project_id, job_id)
        return repository.get_event_number(session, job, after) if after else 0


def read_backlog(database: Database, project_id: str, job_id: str, after: int) -> Backlog:
    """Return a job as it stands and a page of its events after a number."""
    with read_only(database) as session:
        job = service.get_job(session, project_id, job_id)
        events = repository.list_events_after(session, job.id, after, EVENTS_A_LOOK + 1)
        return Backlog(
            job=_wire(session, job),
            is_over=State(job.work.state) in TERMINAL,
            events=_numbered(events[:EVENTS_A_LOOK]),
            has_more=len(events) > EVENTS_A_LOOK,
            step=_newest_step(session, job.id),
        )


def read_head(database: Database, job_id: str) -> Head:
    """Return how a job looks now."""
    with read_only(database) as session:
        return repository.list_heads(session, {job_id})[job_id]


def read_replies(database: Database, jobs: Collection[tuple[str, str]]) -> dict[tuple[str, str], Reply]:
    """Return these jobs, each named by its project and its id, as they are sent; those that there are."""
    with read_only(database) as session:
        found = repository.find_jobs(session, {job_id for _, job_id in jobs})
        return {key: _reply(session, job) for job in found if (key := (job.project_id, job.id)) in jobs}


def _reply(session: Session, job: Job) -> Reply:
    body = encode(_wire(session, job))
    return Reply(etag_of(body), body)


def look(database: Database, before: Mapping[str, Head], key_ids: Set[str]) -> Look:
    """Return which of these keys still open anything, and what is new of the jobs."""
    with read_only(database) as session:
        usable = list_usable_keys(session, key_ids, utc_now())
        heads = repository.list_heads(session, before.keys())
        updates = {
            job_id: _update(session, job_id, before[job_id], head)
            for job_id, head in heads.items()
            if head != before[job_id]
        }
    return Look(usable, updates)


def _update(session: Session, job_id: str, before: Head, head: Head) -> Update:
    events = repository.list_events_after(session, job_id, before.event_number, EVENTS_A_LOOK)
    if len(events) == EVENTS_A_LOOK:
        # The rest comes with the next look; so does the state, which must not overtake the events before it.
        return Update(before._replace(event_number=events[-1].number), _numbered(events))
    rest = _newest_step(session, job_id) if head.step != before.step else b""
    if head.state != before.state:
        rest += message("job", _wire(session, repository.load_job(session, job_id)))
    return Update(head, _numbered(events), rest, is_over=State(head.state) in TERMINAL)


def _newest_step(session: Session, job_id: str) -> bytes:
    record = repository.get_newest_record(session, job_id)
    return b"" if record is None else message("step", record)


def _numbered(events: Sequence[Event]) -> tuple[tuple[int, bytes], ...]:
    return tuple((event.number, message("event", event_to_wire(event), id=event.id)) for event in events)


def _wire(session: Session, job: Job) -> dict[str, Any]:
    return job_to_wire(job, service.get_job_critics(session, job))
