"""What a verification knows so far, and the ways in which a check ends. Standard library only."""

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from app.domain.bundle import LEAVES, LogProof
from app.domain.control_law import MonitorState
from app.domain.installation_log import Checkpoint, HeadLine
from app.domain.leaf_schema import Leaf
from app.domain.ledger import NO_LEAF, kind_of, version_of
from app.domain.merkle import RootBuilder
from app.domain.provenance import Chronicle
from app.domain.report import Report
from app.domain.retention import PrunedTree, PruningLine
from app.domain.step_plan import Layout
from app.domain.trust import Trust

T = TypeVar("T")

MAX_RECORDS = 2_000_000
MAX_TABLE_ROWS = 2_000_000
MAX_KEPT = 32_000_000
"""Bounds of a verifier's memory, whoever made the bundle: records, entries of a risk table, rows that steps name."""


class Broken(Exception):
    """A check found what it must not find."""

    def __init__(self, detail: str, first_bad: int | None = None, where: str = LEAVES) -> None:
        super().__init__(detail)
        self.check_fields = (detail, first_bad, None if first_bad is None else where)


class NotChecked(Exception):
    """There is nothing to check, or what it would need was not given."""


# --- what the records have said so far --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """What a step's record says that later checks need."""

    seq: int
    data_epoch: int
    rows: "array[int]"
    trained_tokens: int
    """0 where the step was skipped."""
    skipped: bool


class Run(NamedTuple):
    """What the plan of a job's steps is made of."""

    layout: Layout
    rows: tuple[int, ...]
    """Of the training file, those that are trained on; a plan's places are places in here."""
    alignment: tuple[int, ...]
    anchors: tuple[int, ...]


class Fitted(NamedTuple):
    """A fitted critic as job.created has it."""

    id: str
    sha256: str | None
    """None where the record is from before version 4, which may have the digest of a judge in its place."""
    low: float | None
    high: float | None
    """None before version 4, where one of the two is missing."""
    threshold: float | None


class Controls(NamedTuple):
    """What a step leaves to the next one, by the record."""

    monitor: MonitorState = MonitorState()
    smoothed: float | None = None


class Held(NamedTuple):
    """What somebody kept of the log from before: a signed checkpoint and, where it is a receipt, the head under it."""

    name: str
    """Of the file, for messages."""
    note: bytes
    head: HeadLine | None


@dataclass(slots=True)
class JobSoFar:
    """The record at hand, and what those before it add up to."""

    manifest: Mapping[str, Any]
    table_entries: Iterable[bytes] | None
    adapter: Path | None
    data: Path | None
    parent: "Parent | None" = None
    log: LogProof | None = None
    """What ties the record to a signed checkpoint, where the bundle has it."""
    trust: Trust | None = None
    """Whose signatures count, where the one that verifies says so."""
    held: tuple[Held, ...] = ()
    """What was kept from before, and is compared with the bundle."""
    must_have_ended: bool = False
    rows: Path | None = None
    """Rows as tokens, to be held against their commitments."""
    dataset_key: bytes | None = None
    """The key of these commitments, where whoever verifies has it."""
    commitments: dict[int, str] = field(default_factory=dict)
    """Of each row in the risk table, where rows were given."""
    pruning: PruningLine | None = None
    """What the log says was pruned of the job, where anything was."""
    pruned: PrunedTree = field(default_factory=PrunedTree)
    """The records of which the bundle has only the hash."""

    documents: Mapping[str, str] = field(default_factory=dict)
    """The SHA-256 of each further member of the bundle, which the members have been held against."""
    policy: bytes | None = None
    """The policy's text, where the bundle has it."""
    provenance: bytes | None = None
    """The signed statement about the adapter, where the bundle has it."""
    chronicle: Chronicle = field(default_factory=Chronicle)
    """What that statement must say, by the records."""

    seq: int = 0
    hash: bytes = b""
    record: Leaf = field(default_factory=dict)
    kind: str = ""
    """Its type without the frame, such as "step"."""
    version: int = 0
    """The version of its type."""
    body: Leaf = field(default_factory=dict)
    previous_hash: str = NO_LEAF
    tree: RootBuilder = field(default_factory=RootBuilder)

    attempt: int = 0
    epoch: int = 0
    owner: tuple[int, int] = (-1, -1)
    """Attempt and epoch of the last job.start or job.resume: whoever trains writes under these."""
    created: Leaf | None = None
    fitted: "tuple[Fitted, ...]" = ()
    """The fitted critics that job.created names, in its order."""
    spec: Leaf | None = None
    """The resolved spec, from job.start."""
    law: Leaf | None = None
    """What the control law reads of the spec, once `safety_law` has checked it."""
    names: tuple[tuple[str | None, ...], ...] = ()
    """By which ids the spec means each of the fitted critics, once `safety_law` has compared the two."""
    table: Leaf | None = None
    s_of_row: dict[int, float | None] = field(default_factory=dict)
    readings_of_row: dict[int, dict[str | None, float]] = field(default_factory=dict)
    """The s of each fitted critic's reading, by its id as the spec has it, where any read the row."""
    live: dict[tuple[int, int], tuple[int, float]] = field(default_factory=dict)
    """By row and the step after which it was asked for: from which step a live score counts, and its s. In order."""
    live_s_of_row: dict[int, float] = field(default_factory=dict)
    """Of these the last of each row."""
    dropped_rows: set[int] = field(default_factory=set)
    """Rows of the table that are not trained on."""
    anchors: Leaf | None = None
    alignment: Leaf | None = None
    steps: list[Step] = field(default_factory=list)
    """The steps that count, superseded ones removed; step k is at k − 1."""
    controls: list[Controls] = field(default_factory=lambda: [Controls()])
    """What holds after each step that counts; what holds after step k is at k."""
    measured: set[int] = field(default_factory=set)
    """The steps that count after which the monitor measured."""
    pause_due: int | None = None
    """The step after which a monitor that pauses found too much, until the job has paused."""
    paused: bool = False
    begun_in: int = 1
    """The version of job.created."""
    run: Run | None = None
    """What the plan is made of, from the first step on that has one."""
    kept: int = 0
    """How much of the records is kept, in rows of a step; a live score takes as much as sixteen."""
    replayed: int = 0
    superseded: int = 0
    resumes: int = 0
    checkpoints: set[tuple[int, str]] = field(default_factory=set)
    """The step and the digest of each that stands."""
    invalid: set[tuple[int, str]] = field(default_factory=set)
    """Of these, what the attempt at hand could not go on from."""
    stepped_back: list[int] = field(default_factory=list)
    """The seq of each resume from an older checkpoint than the newest, where no record says why."""
    started_in: tuple[Leaf, str] | None = None
    """The environment and the device that job.start names."""
    elsewhere: list[int] = field(default_factory=list)
    """The seq of each resume in another environment than that."""
    adapters: set[tuple[int, str | None]] = field(default_factory=set)
    """The step and the digest of each adapter that stands: of checkpoints (None without a name), and what was published."""
    gate_start: Leaf | None = None
    """What the policy's gate found before the first step."""
    gate_pause_due: bool = False
    """Whether that asked for a pause that has not come yet."""
    gate: Leaf | None = None
    """What it found before the release."""
    evaluation: Leaf | None = None
    """What was evaluated before the release."""
    published: Leaf | None = None
    end: Leaf | None = None
    heads: "Heads | None" = None
    """The heads in the installation's log, as far as they were compared."""

    @property
    def gate_floor(self) -> float:
        """The least beta of every step that the gate asked for at the start."""
        return float(self.gate_start["floor"]) if self.gate_start else 0.0

    @property
    def newest_checkpoint(self) -> int:
        """The step of the newest checkpoint that stands and was not found invalid; 0 where there is none."""
        return max((step for step, _ in self.checkpoints - self.invalid), default=0)

    @property
    def is_pruned(self) -> bool:
        """Whether the bundle is of the form in which hashes may stand for records."""
        return self.log is not None and self.log.pruning is not None

    @property
    def forms(self) -> tuple[int, ...]:
        """The versions that a record of this kind may have beside this job.created."""
        return _FORMS.get(self.kind, {}).get(self.begun_in, (self.version,))

    def pass_over(self, index: int, digest: bytes) -> None:
        """Add a record that was pruned: only its hash is known."""
        self.pruned.append(index, digest)
        self.previous_hash = digest.hex()
        self.tree.append(digest)

    def begin(self, index: int, digest: bytes, record: Leaf) -> None:
        """Take up the next record."""
        self.seq, self.hash, self.record = index, digest, record
        self.kind, self.version, self.body = kind_of(record), version_of(record), record["body"]

    def finish(self) -> None:
        """Add the record at hand to what is known. Every check has seen it; it may still be nonsense."""
        self.previous_hash = self.hash.hex()
        self.tree.append(self.hash)
        self.attempt, self.epoch = self.record["attempt"], self.record["epoch"]
        body = self.body
        match self.kind:
            case "job.created":
                self.created, self.begun_in = body, self.version
                self.fitted = _fitted_in(body["critic"])
            case "job.start":
                self.owner, self.spec = (self.attempt, self.epoch), body["spec"]
                self.started_in = (body["environment"], body["device"])
            case "job.resume":
                self.owner = (self.attempt, self.epoch)
                self._note_resume(body)
                self._supersede(body["from_step"])
            case "step":
                self._add_step(body)
            case "monitor":
                state = MonitorState(float(body["floor"]), float(body["anchor_factor"]))
                self.controls[-1] = Controls(state, self.controls[-1].smoothed)
                self.measured.add(body["step"])
            case "live":
                self._add_scores(body)
            case "ckpt":
                self.checkpoints.add((body["step"], body["sha256"]))
                self.adapters.add((body["step"], body.get("adapter_sha256")))
            case "ckpt.invalid":
                self.invalid.add((body["step"], body["sha256"]))
            case "cmd":
                self._obey(body["command"])
            case "adapter.published":
                self.published = body
                self.adapters.add((body["step"], body["zip_sha256"]))
            case name if name in _KEPT_WHOLE:
                setattr(self, _KEPT_WHOLE[name], body)

    def _add_step(self, body: Leaf) -> None:
        skipped = body.get("skipped", False)
        tokens = 0 if skipped else body["tokens"]
        self._count(len(body["rows"]))
        self.steps.append(Step(self.seq, body["data_epoch"], array("q", body["rows"]), tokens, skipped))
        self.controls.append(Controls(self.controls[-1].monitor, body.get("s_smoothed")))

    def _count(self, places: int) -> None:
        """Count what is kept of the records. Raises ValueError where that is more than a verifier's memory should hold."""
        self.kept += places
        if self.kept > MAX_KEPT:
            raise ValueError(f"the steps and live scores so far name more than {MAX_KEPT} rows")

    def _add_scores(self, body: Leaf) -> None:
        self._count(16 * len(body["scores"]))
        for score in body["scores"]:
            self.live[score["row"], score["asked_at"]] = (body["step"], score["s"])
            self.live_s_of_row[score["row"]] = score["s"]

    def _obey(self, command: str) -> None:
        if command == "pause":
            self.paused, self.pause_due, self.gate_pause_due = True, None, False
        elif command == "resume":
            self.paused = False

    def _note_resume(self, body: Leaf) -> None:
        """Note what a resume leaves unexplained, and where its last bits may differ."""
        if body["from_step"] < self.newest_checkpoint:
            self.stepped_back.append(self.seq)
        if self.started_in is not None and (body["environment"], body["device"]) != self.started_in:
            self.elsewhere.append(self.seq)
        self.invalid.clear()

    def _supersede(self, from_step: int) -> None:
        self.resumes += 1
        self.superseded += len(self.steps[from_step:])
        del self.steps[from_step:]
        del self.controls[from_step + 1 :]
        self.measured = {step for step in self.measured if step <= from_step}
        self.live = {asked: score for asked, score in self.live.items() if score[0] <= from_step}
        self.live_s_of_row = {row: s for (row, _), (_, s) in self.live.items()}
        if self.pause_due is not None and self.pause_due > from_step:
            self.pause_due = None
        # What grew from thrown-away steps is thrown away with them.
        self.checkpoints = {(step, digest) for step, digest in self.checkpoints if step <= from_step}
        self.adapters = {(step, digest) for step, digest in self.adapters if step <= from_step}
        if self.published and self.published["step"] > from_step:
            self.published = None
        if self.evaluation and self.evaluation["step"] > from_step:
            self.evaluation = None


_KEPT_WHOLE = {
    "risk.table": "table",
    "anchors": "anchors",
    "alignment": "alignment",
    "gate.start": "gate_start",
    "eval": "evaluation",
    "gate": "gate",
    "job.end": "end",
}
"""Where what a record says is kept as it is, by its type."""
_FORMS: dict[str, dict[int, tuple[int, ...]]] = {
    # A newer risk table says more, as newer records of the sets do: a job that waited for an upgrade has them.
    "risk.table": {1: (1,), 2: (2, 3), 3: (2, 3), 4: (3,)},
    "anchors": {2: (1, 2), 3: (2,), 4: (2,)},
    "alignment": {2: (1, 2), 3: (2,), 4: (2,)},
    "step": {1: (1,), 2: (2,), 3: (2,), 4: (2,)},
}
"""The versions of records that must be beside each version of job.created."""


def _fitted_in(critic: Leaf | None) -> tuple[Fitted, ...]:
    if critic is None:
        return ()
    if "fitted" in critic:
        return tuple(Fitted(**each) for each in critic["fitted"])
    if critic["low"] is None and critic["high"] is None:
        return ()
    return (Fitted(critic["id"], None, critic["low"], critic["high"], critic.get("threshold")),)


@dataclass(slots=True)
class Heads:
    """A job's heads in the installation's log, read, and how many of them were compared with the record."""

    checkpoint: Checkpoint
    lines: list[HeadLine]
    compared: int = 0


class Parent(NamedTuple):
    """The bundle of the job whose adapter another goes on from, read."""

    report: Report
    job: JobSoFar | None
    """None where the bundle could not be read."""


# --- small things -----------------------------------------------------------------------------------------


def ensured(value: T | None) -> T:
    """Return what an earlier check has made sure of: these checks do not run where that one failed."""
    if value is None:
        raise AssertionError("a check ran without the one that it builds on")
    return value


def is_same(a: object, b: object) -> bool:
    """Tell whether two JSON values are equal; unlike Python's ==, true is not 1."""
    return a == b and isinstance(a, bool) is isinstance(b, bool)


def counted(n: int, what: str) -> str:
    """Return a number with what it counts, such as "1 row" or "2 rows"."""
    return f"{n} {what}{'' if n == 1 else 's'}"
