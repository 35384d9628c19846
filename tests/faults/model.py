"""What must hold of every job, whatever happens: a small model that looks at the database after each transaction."""

import sqlite3
from typing import NamedTuple

from app.domain import ledger
from app.domain.job import TERMINAL, TRANSITIONS, Desired, State
from app.settings import Settings

WRITTEN_BY_OWNERS = frozenset(
    {"job.start", "job.resume", "risk.table", "step", "ckpt", "ckpt.invalid", "adapter.published"}
)


class Row(NamedTuple):
    """A piece of work as its row has it."""

    id: str
    state: str
    desired: str
    epoch: int
    attempt: int
    owner: str | None
    attempts_without_progress: int
    infrastructure_failures: int
    ledger_size: int
    ledger_head: str


class Known:
    """What the model knows of a job."""

    def __init__(self, name: str, job_id: str) -> None:
        self.name = name
        self.id = job_id
        self.row: Row | None = None
        self.head = ledger.NO_LEAF
        self.leaves = 0
        self.steps: list[int] = []
        self.owners: dict[int, str] = {}
        """Who had it, by epoch."""
        self.is_poison = False
        self.is_cancelled = False
        """Whether the client was told that it will be cancelled."""
        self.steps_since_cancelled = 0
        self.file_id = ""


class Model:
    """What is known of all jobs, and what came of everything."""

    def __init__(self, connection: sqlite3.Connection, settings: Settings) -> None:
        self.jobs: dict[str, Known] = {}
        self.log: list[str] = []
        self._connection, self._settings = connection, settings

    def look(self, who: str) -> None:
        """Look at every job after somebody's transaction. Raises AssertionError for what must never be."""
        for job in self.jobs.values():
            found = self._connection.execute(
                "SELECT id, state, desired, epoch, attempt, owner, attempts_without_progress, infrastructure_failures,"
                " ledger_size, ledger_head FROM work WHERE id = ?",
                (job.id,),
            ).fetchone()
            row = Row(*found)
            if row != job.row:
                self._check_row(job, row, who)
                self._check_leaves(job, row, who)
                job.row = row

    def _check_row(self, job: Known, row: Row, who: str) -> None:
        before = job.row
        said = f"{job.name} under {who}: {before} became {row}"
        if before is None or before.state != row.state:
            was = before.state if before else "nothing"
            self.log.append(
                f"{who}: {job.name} {was} → {row.state}, epoch {row.epoch}, attempt {row.attempt}"
            )
        if row.owner is not None:
            assert job.owners.setdefault(row.epoch, row.owner) == row.owner, f"two owners in an epoch: {said}"
        assert row.attempts_without_progress <= self._settings.max_attempts_without_progress, said
        assert row.infrastructure_failures <= self._settings.max_infrastructure_failures + 1, said
        if job.is_cancelled:
            assert row.state not in ("signing", "held", "succeeded"), f"a cancelled job went on: {said}"
            assert row.desired == Desired.CANCEL, f"a cancellation was taken back: {said}"
        if before is None or before.state == row.state:
            return
        assert State(before.state) not in TERMINAL, f"a terminal state was left: {said}"
        assert row.epoch >= before.epoch, said
        if row.state == State.STARTING:
            assert before.state == State.QUEUED, f"claimed though it was not queued: {said}"
            assert row.epoch == before.epoch + 1, f"claimed without a new epoch: {said}"
            assert not job.is_cancelled, said
        # One transaction may take two arrows: a pause that begins after it was taken back.
        direct = State(row.state) in TRANSITIONS[State(before.state)]
        assert direct or (State.PAUSED in TRANSITIONS[State(before.state)] and row.state == State.QUEUED), (
            said
        )

    def _check_leaves(self, job: Known, row: Row, who: str) -> None:
        leaves = self._connection.execute(
            "SELECT seq, leaf FROM ledger_leaves WHERE work_id = ? AND seq >= ? ORDER BY seq",
            (job.id, job.leaves),
        ).fetchall()
        for seq, leaf in leaves:
            record = ledger.parse_leaf(leaf)
            kind, body = ledger.kind_of(record), record["body"]
            said = f"{job.name} under {who}: {record}"
            assert seq == record["seq"] == job.leaves, f"a hole in the record: {said}"
            assert record["prev"] == job.head, f"a broken chain: {said}"
            assert record["epoch"] == row.epoch, f"a leaf under another epoch than {row.epoch}: {said}"
            if kind in WRITTEN_BY_OWNERS:
                assert job.owners.get(record["epoch"]) == who, f"written by another than its owner: {said}"
            if kind == "step":
                assert body["step"] == len(job.steps) + 1, f"a hole in the steps {job.steps}: {said}"
                job.steps.append(body["step"])
                job.steps_since_cancelled += job.is_cancelled
                assert job.steps_since_cancelled <= 1, f"trained on after its cancellation: {said}"
            if kind == "job.resume":
                assert body["from_step"] <= len(job.steps), f"resumed ahead of its record: {said}"
                del job.steps[body["from_step"] :]
            job.leaves, job.head = seq + 1, ledger.chain_hash(leaf)
            self.log.append(f"{who}: {job.name} {kind} {body.get('step', body.get('command', ''))}")
        assert (row.ledger_size, row.ledger_head) == (job.leaves, job.head), f"{job.name}: {row}"
