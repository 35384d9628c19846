"""Every query of jobs, their events, steps and checkpoints, scoped by project."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from sqlalchemy import (
    ColumnElement,
    Text,
    bindparam,
    cast,
    delete,
    func,
    insert,
    select,
    text,
    tuple_,
    update,
)
from sqlalchemy.orm import Session

from app.audit.repository import iterate_leaves
from app.domain.job import State
from app.domain.ledger import kind_of, parse_leaf
from app.domain.risk_curve import pack_steps
from app.models.base import new_id, utc_now
from app.models.job import Checkpoint, CurvePiece, Event, Job, LedgerLeaf, Step
from app.models.work import Work
from app.pages import unknown_cursor

STEPS_A_PIECE = 512
"""A reader parses at most so many records; the steps before them are packed."""
LAST_LEAVES = 8
"""The last leaves of a job that was published are eval, gate, adapter.published and job.end."""


def get_job(session: Session, project_id: str, job_id: str) -> Job | None:
    """Return a job of the project."""
    return next((job for job in find_jobs(session, [job_id]) if job.project_id == project_id), None)


_BY_ID = select(Job).where(Job.id.in_(bindparam("ids", expanding=True)))
"""Asked for more than all the rest, and so made once."""


def find_jobs(session: Session, job_ids: Iterable[str]) -> Sequence[Job]:
    """Return those of these jobs that there are, of whatever project: the caller looks at `project_id`."""
    return session.scalars(_BY_ID, {"ids": list(job_ids)}).all()


def load_job(session: Session, job_id: str) -> Job:
    """Return the job of a row of work, for the process that owns it."""
    return session.get_one(Job, job_id, populate_existing=True)


def list_jobs(
    session: Session,
    project_id: str,
    *,
    after: str | None,
    limit: int,
    metadata: dict[str, str],
    without_metadata: bool = False,
    states: Collection[State] = (),
) -> Sequence[Job]:
    """Return up to limit + 1 jobs, newest first, that have all of these metadata, or none at all, and one of the states."""
    query = select(Job).where(Job.project_id == project_id)
    if states:
        query = query.where(Job.work.has(Work.state.in_(states)))
    for key, value in metadata.items():
        query = query.where(_has_metadata(session, key, value))
    if without_metadata:
        query = query.where(func.coalesce(cast(Job.job_metadata, Text), "null").in_(["null", "{}"]))
    if after is not None:
        cursor = session.execute(
            select(Job.created_at, Job.id).where(Job.id == after, Job.project_id == project_id)
        ).one_or_none()
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(tuple_(Job.created_at, Job.id) < tuple(cursor))
    return session.scalars(query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit + 1)).all()


def _has_metadata(session: Session, key: str, value: str) -> ColumnElement[bool]:
    if session.get_bind().dialect.name != "sqlite":
        found: ColumnElement[bool] = Job.job_metadata[key].as_string() == value
        return found
    # A path of SQLite cannot name every key, such as one with a quote in it; its table of pairs can.
    pairs = func.json_each(Job.job_metadata).table_valued("key", "value")
    return select(pairs.c.key).where(pairs.c.key == key, pairs.c.value == value).exists()


class OfProject(Protocol):
    """What names a job and whose it is: its row, or what its owner knows of it."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def project_id(self) -> str:
        """The id of its project."""


def add_event(
    session: Session,
    job: OfProject,
    message: str,
    *,
    level: str = "info",
    type: str = "message",
    data: dict[str, Any] | None = None,
) -> None:
    """Append a line to a job's event log."""
    session.add(
        Event(
            id=new_id("ftevent-"),
            project_id=job.project_id,
            job_id=job.id,
            level=level,
            type=type,
            message=message,
            data=data,
            created_at=utc_now(),
        )
    )


def list_events(
    session: Session, job: Job, *, after: str | None, limit: int, type: str | None = None
) -> Sequence[Event]:
    """Return up to limit + 1 events, newest first; of one type where that is given."""
    query = select(Event).where(Event.job_id == job.id)
    if type is not None:
        query = query.where(Event.type == type)
    if after is not None:
        query = query.where(Event.number < get_event_number(session, job, after))
    return session.scalars(query.order_by(Event.number.desc()).limit(limit + 1)).all()


MOST_MARKS = 100


def list_marks(session: Session, job: Job) -> list[dict[str, Any]]:
    """Return what happened at which step of a curve, in order: checkpoints that are offered, pauses, and what a policy did.

    Of very many, the newest.
    """
    checkpoints = session.scalars(
        select(Checkpoint.step)
        .where(Checkpoint.job_id == job.id, Checkpoint.name.is_not(None))
        .order_by(Checkpoint.step.desc())
        .limit(MOST_MARKS)
    )
    said = session.scalars(
        select(Event.data)
        # As it stands in the condition of the index.
        .where(Event.job_id == job.id, text("type = 'message'"), Event.data["mark"].as_string().is_not(None))
        .order_by(Event.number.desc())
        .limit(MOST_MARKS)
    )
    marks = [{"step": step, "kind": "checkpoint", "label": "checkpoint"} for step in checkpoints]
    marks += [
        {"step": data["step"], "kind": data["mark"], "label": data["label"]}
        for data in said
        if data is not None
    ]
    return sorted(marks, key=lambda mark: mark["step"])


def get_event_number(session: Session, job: Job, event_id: str) -> int:
    """Return where an event stands in the order of events. Raises InvalidRequest where it is not one of the job's."""
    number = session.scalars(
        select(Event.number).where(Event.id == event_id, Event.job_id == job.id)
    ).one_or_none()
    if number is None:
        raise unknown_cursor(event_id)
    return number


def list_events_after(session: Session, job_id: str, number: int, limit: int) -> Sequence[Event]:
    """Return up to `limit` events after a number, oldest first."""
    return session.scalars(
        select(Event).where(Event.job_id == job_id, Event.number > number).order_by(Event.number).limit(limit)
    ).all()


class Head(NamedTuple):
    """What tells whether a job has changed since somebody looked."""

    state: str
    step: int
    total_steps: int | None
    ledger_head: str
    event_number: int
    """Of its newest event; 0 without any."""


def list_heads(session: Session, job_ids: Iterable[str]) -> dict[str, Head]:
    """Return how these jobs look now."""
    newest = select(func.coalesce(func.max(Event.number), 0)).where(Event.job_id == Job.id).scalar_subquery()
    rows = session.execute(
        select(Job.id, Work.state, Job.step, Job.total_steps, Work.ledger_head, newest)
        .join(Work, Work.id == Job.id)
        .where(Job.id.in_(job_ids))
    )
    return {job_id: Head(*values) for job_id, *values in rows}


def add_checkpoint(session: Session, job: Job, **values: Any) -> Checkpoint:
    """Insert a checkpoint."""
    checkpoint = Checkpoint(
        id=new_id("ftckpt_"), project_id=job.project_id, job_id=job.id, created_at=utc_now(), **values
    )
    session.add(checkpoint)
    return checkpoint


def list_named_checkpoints(
    session: Session, job: Job, *, after: str | None, limit: int
) -> Sequence[Checkpoint]:
    """Return up to limit + 1 checkpoints that are offered to the client, newest first."""
    query = select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.name.is_not(None))
    if after is not None:
        cursor = session.scalars(
            select(Checkpoint.step).where(Checkpoint.id == after, Checkpoint.job_id == job.id)
        ).one_or_none()
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(Checkpoint.step < cursor)
    return session.scalars(query.order_by(Checkpoint.step.desc()).limit(limit + 1)).all()


def list_resumable(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """Return the checkpoints that are kept to resume from, newest first."""
    return session.scalars(
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id, Checkpoint.folder.is_not(None))
        .order_by(Checkpoint.step.desc())
    ).all()


_ADD_STEP = insert(Step.metadata.tables[Step.__tablename__])


def save_step(session: Session, job: OfProject, step: int, record: dict[str, Any]) -> None:
    """Keep a step's record. Those that a crash threw away are forgotten before their steps are done again.

    The steps before it have all that they will ever say, the run-level monitor's measurement too, so that they are
    packed now where there are enough of them.
    """
    session.connection().execute(
        _ADD_STEP, {"job_id": job.id, "project_id": job.project_id, "step": step, "record": record}
    )
    if step % STEPS_A_PIECE == 1 and step > 1:
        _pack_until(session, job, step - 1)


def _pack_until(session: Session, job: OfProject, last_step: int) -> None:
    before = session.scalars(
        select(CurvePiece).where(CurvePiece.job_id == job.id).order_by(CurvePiece.last_step.desc()).limit(1)
    ).one_or_none()
    after = before.last_step if before else 0
    records = session.scalars(
        select(Step.record)
        .where(Step.job_id == job.id, Step.step > after, Step.step <= last_step)
        .order_by(Step.step)
    )
    packed = pack_steps(records, before.packed if before else None)
    session.add(CurvePiece(job_id=job.id, project_id=job.project_id, last_step=last_step, packed=packed))


class Advance(NamedTuple):
    """How far a job is, in the columns of its row."""

    step: int
    trained_tokens: int
    risk_mean: float | None
    beta_mean: float | None
    estimated_finish_at: datetime | None


_JOBS = Job.metadata.tables[Job.__tablename__]
_ADVANCE = (
    update(_JOBS)
    .where(_JOBS.c.id == bindparam("job"), _JOBS.c.step == bindparam("before"))
    .values({name: bindparam(f"new_{name}") for name in Advance._fields})
)


def advance(session: Session, job_id: str, before: int, now: Advance) -> bool:
    """Say how far a job is. False where it is not where its owner left it."""
    values = {f"new_{name}": value for name, value in now._asdict().items()}
    moved = session.connection().execute(_ADVANCE, {"job": job_id, "before": before, **values})
    return moved.rowcount == 1


def load_curve(session: Session, job: Job) -> tuple[Sequence[bytes], Sequence[dict[str, Any]]]:
    """Return the packed pieces of a job's risk curve, and the records of the steps after them."""
    pieces = session.execute(
        select(CurvePiece.last_step, CurvePiece.packed)
        .where(CurvePiece.job_id == job.id)
        .order_by(CurvePiece.last_step),
        execution_options={"large_bytes": True},
    ).all()
    after = pieces[-1].last_step if pieces else 0
    records = session.scalars(
        select(Step.record).where(Step.job_id == job.id, Step.step > after).order_by(Step.step)
    ).all()
    return [piece.packed for piece in pieces], records


def forget_steps(session: Session, job: Job, *, after: int) -> None:
    """Forget the steps that a crash threw away: they are done again."""
    session.execute(delete(Step).where(Step.job_id == job.id, Step.step > after))
    session.execute(delete(CurvePiece).where(CurvePiece.job_id == job.id, CurvePiece.last_step > after))


def save_validation(session: Session, job: Job, step: int, validation: dict[str, Any]) -> None:
    """Add a validation to the step after which it was measured."""
    session.get_one(Step, (job.id, step)).validation = validation


def save_drift(session: Session, job: Job, step: int, kl: float | None) -> None:
    """Add the run-level monitor's measurement to the step after which it was made."""
    row = session.get_one(Step, (job.id, step))
    row.record = {**row.record, "drift": kl}


def list_steps(session: Session, job: Job, *, after: int, limit: int | None) -> Sequence[Step]:
    """Return the records after a step, in order; all of them where limit is None."""
    query = select(Step).where(Step.job_id == job.id, Step.step > after).order_by(Step.step)
    return session.scalars(query.limit(limit)).all()


def get_newest_record(session: Session, job_id: str) -> dict[str, Any] | None:
    """Return the record of the newest step."""
    return session.scalars(
        select(Step.record).where(Step.job_id == job_id).order_by(Step.step.desc()).limit(1)
    ).one_or_none()


def list_rows_since_pass(session: Session, job: Job, data_epoch: int) -> set[int]:
    """Return the rows that the newest pass over the data has had so far; steps are read backwards until it began."""
    records = session.scalars(
        select(Step.record).where(Step.job_id == job.id).order_by(Step.step.desc())
    ).yield_per(1000)
    rows: set[int] = set()
    for record in records:
        if record["data_epoch"] != data_epoch:
            break
        rows.update(record["rows"])
    return rows


def has_started(session: Session, job_id: str) -> bool:
    """Say whether an earlier attempt of this job got as far as its first record."""
    return session.get_one(Job, job_id).total_steps is not None


def load_created_record(session: Session, job_id: str) -> dict[str, Any]:
    """Return the first record of a job's ledger."""
    return parse_leaf(session.get_one(LedgerLeaf, (job_id, 0)).leaf)


def load_start_record(session: Session, job_id: str) -> dict[str, Any]:
    """Return the record of the first attempt's beginning. Raises LookupError where there is none yet."""
    for leaf in iterate_leaves(session, job_id):
        record = parse_leaf(leaf)
        if kind_of(record) == "job.start":
            return record
    raise LookupError(f"{job_id} has no job.start")


def load_gate_record(session: Session, work: Work) -> dict[str, Any] | None:
    """Return what the record of a job that has ended says of its policy's gate; None where it says nothing.

    It stands right before what is published, so that the steps need not be read.
    """
    leaves = session.scalars(
        select(LedgerLeaf.leaf)
        .where(LedgerLeaf.work_id == work.id, LedgerLeaf.seq >= work.ledger_size - LAST_LEAVES)
        .order_by(LedgerLeaf.seq)
    )
    found = [record["body"] for record in map(parse_leaf, leaves) if kind_of(record) == "gate"]
    return dict(found[-1]) if found else None
