"""Whose turn it is: between projects the one that has had least, within a project the highest priority.

A message only wakes a worker. What the worker does then is chosen here, from what the database says: of the projects
that have work waiting, the one with the fewest pieces of work in hand goes first, then the one whose work took least
of the workers' time in the last 24 hours; of its work, the highest priority, then the oldest. A project at its limit
is passed over; what waits for that reason says so.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlalchemy.orm import Session

from app.database import Database, read_only, unit_of_work
from app.domain.job import OWNED, Desired, State, WorkKind
from app.failpoints import failpoint
from app.models.base import now_ms
from app.models.tenancy import Project, Span
from app.models.work import Work, Worker
from app.projects.repository import get_project
from app.quotas import repository as quotas
from app.quotas.limits import Limits, limits_of
from app.quotas.service import lacks_gpu_time, lacks_running_place
from app.settings import Settings
from app.work import repository
from app.work.service import note_claim

RECENT_MS = 24 * 3600 * 1000
WORKER_SILENCE_MS = 30_000
NO_WORKER = "no worker of the queue is alive"
ROUNDED_TO_MS = 10_000
MEASURED_BY = 20
"""The expected time of a piece of work is the mean of so many that ended last."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A piece of work that could be claimed, but for its project's limits."""

    work_id: str
    project_id: str
    kind: str


@dataclass(slots=True)
class Line:
    """What a project has waiting in a queue, in its order, and what it has had."""

    limits: Limits
    in_hand: int = 0
    spent_ms: float = 0
    waiting: list[Waiting] = field(default_factory=list)

    @property
    def has_room(self) -> bool:
        """Whether one more piece of its work may run."""
        return not self.limits.running_jobs or self.in_hand < self.limits.running_jobs


@dataclass(frozen=True, slots=True)
class Turn:
    """When a piece of work is expected to be claimed."""

    work_id: str
    position: int
    ahead_in_project: int
    eta_ms: int | None
    waits_for: str | None

    def to_wire(self) -> dict[str, Any]:
        """Return it as a job shows it. The time is rounded, so that it is not another one at every look."""
        eta = None if self.eta_ms is None else -(-self.eta_ms // ROUNDED_TO_MS) * ROUNDED_TO_MS // 1000
        return {
            "position": self.position,
            "ahead_in_project": self.ahead_in_project,
            "eta": eta,
            "waits_for": self.waits_for,
        }


def claim_next(
    database: Database, settings: Settings, queue: str, *, owner: str, lease_ms: int
) -> Work | None:
    """Claim the work whose turn it is. None where there is none."""
    while True:
        with read_only(database) as session:
            chosen = find_next(session, settings, queue)
        if chosen is None:
            return None
        with unit_of_work(database) as session:
            # From here on nobody else claims for this project, so that it cannot pass its limit.
            project = get_project(session, chosen.project_id, lock=True)
            work = None
            if project is not None and _blocked(session, limits_of(project, settings), queue, chosen) is None:
                work = repository.claim(session, chosen.work_id, owner=owner, lease_ms=lease_ms)
                if work is not None:
                    note_claim(session, work)
                failpoint("claim.before_commit")
        if work is not None:
            failpoint("claim.after_commit")
            return work
        # Somebody was quicker; whose turn it is now is another question.


def find_next(session: Session, settings: Settings, queue: str) -> Waiting | None:
    """Return the work whose turn it is."""
    lines = _read_lines(session, settings, queue)
    for project_id in sorted(lines, key=lambda each: _had(lines, each)):
        line = lines[project_id]
        # The limits are the same for all work of a kind.
        blocked = {
            waiting.kind: _blocked(session, line.limits, queue, waiting)
            for waiting in {each.kind: each for each in line.waiting}.values()
        }
        for waiting in line.waiting:
            if blocked[waiting.kind] is None:
                return waiting
    return None


def list_turns(session: Session, settings: Settings, queue: str) -> list[Turn]:
    """Return everything that waits in a queue in the order in which it will be claimed, as far as one can tell.

    It plays the workers forward: each takes what is next when it is free. Times are given where a worker lives and
    some work of the queue has ended, by which to measure.
    """
    lines = _read_lines(session, settings, queue)
    if not lines:
        return []
    reasons = {
        project_id: (
            _lacks_time(session, line.limits, queue, project_id),
            lacks_running_place(session, project_id, line.limits),
        )
        for project_id, line in lines.items()
    }
    going = {project_id: line for project_id, line in lines.items() if reasons[project_id][0] is None}
    living = _count_workers(session, queue)
    mean_ms = _mean_duration(session, queue)
    lasts_ms = mean_ms or 1.0
    now = at = float(quotas.read_clock(session))
    ends = [
        (max(now, started_ms + lasts_ms), project_id)
        for project_id, started_ms in _list_running(session, queue)
    ]
    heapq.heapify(ends)
    free = max(1, living) - len(ends)
    turns: list[Turn] = []
    ahead: Counter[str] = Counter()

    def add(waiting: Waiting, eta_ms: int | None, waits_for: str | None) -> None:
        turns.append(Turn(waiting.work_id, len(turns) + 1, ahead[waiting.project_id], eta_ms, waits_for))
        ahead[waiting.project_id] += 1

    while any(line.waiting for line in going.values()):
        ready = [project_id for project_id, line in going.items() if line.waiting and line.has_room]
        if free <= 0 or not ready:
            at, ended = heapq.heappop(ends)
            free += 1
            if ended in going:
                going[ended].in_hand -= 1
            continue
        project_id = min(ready, key=lambda each: _had(going, each))
        line = going[project_id]
        # A worker that is to come takes an unknown time.
        eta_ms = int(at) if living and mean_ms else None
        add(line.waiting.pop(0), eta_ms, reasons[project_id][1] or (None if living else NO_WORKER))
        line.in_hand += 1
        line.spent_ms += lasts_ms
        free -= 1
        heapq.heappush(ends, (at + lasts_ms, project_id))
    for project_id, line in lines.items():
        for waiting in line.waiting:
            add(waiting, None, reasons[project_id][0])
    return turns


def note_turns(database: Database, settings: Settings, queue: str) -> None:
    """Write to everything that waits in a queue when it is expected to be claimed, where that has changed."""
    with read_only(database) as session:
        turns = {turn.work_id: turn.to_wire() for turn in list_turns(session, settings, queue)}
        rows = session.execute(
            select(Work.id, Work.turn).where(Work.queue == queue, Work.state == State.QUEUED)
        )
        known = {work_id: turn for work_id, turn in rows}  # noqa: C416  (Rows are not typed as pairs.)
    changed = sorted(work_id for work_id, turn in turns.items() if known.get(work_id) != turn)
    if changed:
        with unit_of_work(database) as session:
            for work_id in changed:
                _write_turn(session, work_id, turns[work_id])


def note_turn(session: Session, settings: Settings, work: Work) -> None:
    """Write to one that has just come to wait when it is expected to be claimed."""
    session.flush()
    for turn in list_turns(session, settings, work.queue):
        if turn.work_id == work.id:
            _write_turn(session, work.id, turn.to_wire())


def _write_turn(session: Session, work_id: str, turn: dict[str, Any]) -> None:
    session.execute(update(Work).where(Work.id == work_id, Work.state == State.QUEUED).values(turn=turn))


def _read_lines(session: Session, settings: Settings, queue: str) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    rows = session.execute(
        select(Work.id, Work.project_id, Work.kind)
        .where(Work.state == State.QUEUED, Work.queue == queue, Work.desired == Desired.RUN)
        .where(or_(Work.not_before_ms.is_(None), Work.not_before_ms <= now_ms()))
        .order_by(Work.priority.desc(), Work.created_at, Work.id)
    )
    for work_id, project_id, kind in rows:
        if project_id not in lines:
            lines[project_id] = Line(limits_of(session.get_one(Project, project_id), settings))
        lines[project_id].waiting.append(Waiting(work_id, project_id, kind))
    if lines:
        since_ms = quotas.read_clock(session) - RECENT_MS
        for project_id, spent_ms in quotas.sum_spans(session, queue=queue, since_ms=since_ms).items():
            if project_id in lines:
                lines[project_id].spent_ms = spent_ms
        for project_id, _ in _list_running(session, queue):
            if project_id in lines:
                lines[project_id].in_hand += 1
    return lines


def _had(lines: dict[str, Line], project_id: str) -> tuple[int, float, str]:
    line = lines[project_id]
    return line.in_hand, line.spent_ms, project_id


def _blocked(session: Session, limits: Limits, queue: str, waiting: Waiting) -> str | None:
    """Return why this may not be claimed because of its project's limits, if so."""
    no_time = _lacks_time(session, limits, queue, waiting.project_id)
    if no_time is not None or waiting.kind != WorkKind.TRAIN:
        return no_time
    return lacks_running_place(session, waiting.project_id, limits)


def _lacks_time(session: Session, limits: Limits, queue: str, project_id: str) -> str | None:
    return lacks_gpu_time(session, project_id, limits) if queue == quotas.GPU else None


def _list_running(session: Session, queue: str) -> Sequence[tuple[str, int]]:
    """Return the project of each piece of work that a worker of the queue has in hand, and since when."""
    query = (
        select(Work.project_id, Span.started_ms)
        .join(Span, (Span.work_id == Work.id) & (Span.epoch == Work.epoch))
        .where(Work.queue == queue, Work.state.in_(OWNED))
    )
    return [(project_id, started_ms) for project_id, started_ms in session.execute(query)]


def _count_workers(session: Session, queue: str) -> int:
    query = select(func.count()).select_from(Worker)
    query = query.where(Worker.queue == queue, Worker.seen_at_ms > now_ms() - WORKER_SILENCE_MS)
    return session.scalars(query).one()


def _mean_duration(session: Session, queue: str) -> float | None:
    """Return how long the work that ended last had a worker, on the average. None where none has ended."""
    spent = (
        select(func.sum(Span.until_ms - Span.started_ms).label("ms"))
        .join(Work, Work.id == Span.work_id)
        .where(Work.queue == queue, Work.state == State.SUCCEEDED)
        .group_by(Work.id, Work.finished_at)
        .order_by(Work.finished_at.desc())
        .limit(MEASURED_BY)
        .subquery()
    )
    mean = session.scalars(select(func.avg(spent.c.ms))).one()
    return None if mean is None else float(mean)
