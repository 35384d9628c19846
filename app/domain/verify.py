"""The offline verifier: what an evidence bundle claims, checked in a fixed order against itself.

One pass over the records, each handed to every check; a check stops at the first record that breaks it and
names that record. Checks are numbered in the order of `CHECKS`. It needs the bundle and nothing else, and
nothing in a bundle makes it raise. Standard library only.
"""

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from app.domain.bundle import LEAVES, RISK_TABLE, BundleError, read_bundle
from app.domain.control_law import compute_alpha, compute_row_beta, compute_s, mean
from app.domain.ledger import NO_LEAF, Leaf, RiskRow, digest_of, parse_leaf, parse_risk_row
from app.domain.merkle import RootBuilder, leaf_hash

CHECKS = (
    "records",
    "sequence",
    "chain",
    "root",
    "signature",
    "grammar",
    "attempts",
    "risk table",
    "control law",
    "coverage",
    "training file",
    "adapter",
    "end",
)
"""The names of the checks, in order; their numbers count from 1."""

EXIT_OK = 0
EXIT_CODES = {name: 10 + number for number, name in enumerate(CHECKS, start=1)}
"""The exit code of a command whose first failed check is this one."""

Outcome = Literal["ok", "failed", "not checked"]
Safety = Mapping[str, Any]
T = TypeVar("T")


# --- the report -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """What came of one check."""

    name: str
    outcome: Outcome
    detail: str
    first_bad: int | None = None
    """The line, from 0, of the first record that breaks the check; None where no single record does."""
    first_bad_in: str | None = None
    """The member that `first_bad` counts in: leaves.jsonl (there the line is `seq`) or risk_table.jsonl."""


@dataclass(frozen=True, slots=True)
class Report:
    """What the verifier found. `ok` promises only what the checks with outcome "ok" say."""

    checks: tuple[Check, ...]
    job: str | None = None
    size: int | None = None
    root: str | None = None
    state: str | None = None
    """How the job ended, by its record; None where the record does not say."""
    protection: str = "unknown: the record does not say by which method the job was trained"

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.outcome != "failed" for check in self.checks)

    @property
    def exit_code(self) -> int:
        """EXIT_OK, or the code of the first check that failed."""
        failed = (EXIT_CODES[check.name] for check in self.checks if check.outcome == "failed")
        return next(failed, EXIT_OK)

    def to_dict(self) -> dict[str, object]:
        """Return the report as plain JSON values."""
        return {
            "object": "verification_report",
            "ok": self.ok,
            "exit_code": self.exit_code,
            "job": self.job,
            "size": self.size,
            "root": self.root,
            "state": self.state,
            "protection": self.protection,
            "checks": [
                {"number": number, **asdict(check)} for number, check in enumerate(self.checks, start=1)
            ],
        }

    def lines(self) -> list[str]:
        """Return the report for people: what it is about, one line per check, and the verdict."""
        result = [
            f"job {self.job or '?'}: {'?' if self.size is None else self.size} records,"
            f" state {self.state or 'not ended'}, root {self.root or '?'}",
            f"protection: {self.protection}",
        ]
        for number, check in enumerate(self.checks, start=1):
            where = "" if check.first_bad is None else f" [{check.first_bad_in} line {check.first_bad}]"
            result.append(f"{number:>2} {check.name:<13} {check.outcome:<11} {check.detail}{where}")
        failed = sum(check.outcome == "failed" for check in self.checks)
        skipped = sum(check.outcome == "not checked" for check in self.checks)
        verdict = "no check failed" if self.ok else f"{failed} of {len(self.checks)} checks FAILED"
        result.append(f"{verdict}; {skipped} not checked")
        return result


# --- verifying --------------------------------------------------------------------------------------------


def verify_bundle(path: Path, *, adapter: Path | None = None, data: Path | None = None) -> Report:
    """Check a bundle; with the adapter's zip and the training file, check these against the record too.

    Never raises for what the files hold: whatever is wrong with them is a failed check.
    """
    try:
        with read_bundle(path) as bundle:
            return verify_contents(
                bundle.manifest, bundle.leaves(), bundle.risk_table(), adapter=adapter, data=data
            )
    except BundleError as error:
        unread = [Check(name, "not checked", "the bundle cannot be read") for name in CHECKS[1:]]
        return Report((Check("records", "failed", str(error)), *unread))


def verify_contents(
    manifest: Mapping[str, Any],
    leaves: Iterable[bytes],
    risk_table: Iterable[bytes] | None,
    *,
    adapter: Path | None = None,
    data: Path | None = None,
) -> Report:
    """Check records that come from elsewhere than a bundle; `manifest` has job, size, root and head."""
    job = _Job(manifest=manifest, table_entries=risk_table, adapter=adapter, data=data)
    outcomes: dict[str, Check] = {}
    index = 0
    try:
        for leaf in leaves:
            job.begin(index, leaf_hash(leaf), parse_leaf(leaf))
            for name in CHECKS:
                if name in _EACH and not _is_blocked(name, outcomes):
                    _attempt(name, _EACH[name], job, outcomes)
            job.finish()
            index += 1
        if not index:
            raise ValueError("there is no record")
    except ValueError as error:
        outcomes["records"] = Check("records", "failed", str(error), index, LEAVES)
    for name in CHECKS:
        blocker = _is_blocked(name, outcomes)
        if name not in outcomes and blocker:
            outcomes[name] = Check(name, "not checked", f"the check {blocker!r} failed")
        elif name not in outcomes:
            _attempt(name, _AT_END[name], job, outcomes)
    return Report(
        checks=tuple(outcomes[name] for name in CHECKS),
        job=manifest["job"],
        size=manifest["size"],
        root=manifest["root"],
        state=job.end["state"] if job.end else None,
        protection=_describe_protection(job),
    )


class _Broken(Exception):
    """A check found what it must not find."""

    def __init__(self, detail: str, first_bad: int | None = None, where: str = LEAVES) -> None:
        super().__init__(detail)
        self.check_fields = (detail, first_bad, None if first_bad is None else where)


class _NotChecked(Exception):
    """There is nothing to check, or what it would need was not given."""


def _attempt(
    name: str, check: Callable[["_Job"], str | None], job: "_Job", outcomes: dict[str, Check]
) -> None:
    try:
        detail = check(job)
        if detail is not None:
            outcomes[name] = Check(name, "ok", detail)
    except _Broken as broken:
        outcomes[name] = Check(name, "failed", *broken.check_fields)
    except _NotChecked as reason:
        outcomes[name] = Check(name, "not checked", str(reason))


_NEEDS = {
    "attempts": ("grammar",),
    "risk table": ("grammar",),
    "control law": ("grammar", "risk table"),
    "coverage": ("grammar", "attempts", "risk table"),
    "training file": ("grammar",),
    "adapter": ("grammar", "attempts"),
    "end": ("grammar", "attempts"),
}


def _is_blocked(name: str, outcomes: Mapping[str, Check]) -> str | None:
    """Return the failed check without which `name` means nothing, or `name` itself where it has an outcome."""
    if name in outcomes:
        return name
    needs = ("records", *_NEEDS.get(name, ()))
    return next((need for need in needs if need in outcomes and outcomes[need].outcome == "failed"), None)


# --- what the records have said so far --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    seq: int
    data_epoch: int
    rows: tuple[int, ...]
    tokens: int


@dataclass(slots=True)
class _Job:
    """The record at hand, and what those before it add up to."""

    manifest: Mapping[str, Any]
    table_entries: Iterable[bytes] | None
    adapter: Path | None
    data: Path | None

    seq: int = 0
    hash: bytes = b""
    record: Leaf = field(default_factory=dict)
    previous_hash: str = NO_LEAF
    tree: RootBuilder = field(default_factory=RootBuilder)

    attempt: int = 0
    epoch: int = 0
    owner: tuple[int, int] = (-1, -1)
    """Attempt and epoch of the last job.start or job.resume: whoever trains writes under these."""
    created: Leaf | None = None
    spec: Leaf | None = None
    """The resolved spec, from job.start."""
    table: Leaf | None = None
    s_of_row: dict[int, float | None] = field(default_factory=dict)
    steps: list[_Step] = field(default_factory=list)
    """The steps that count, superseded ones removed; step k is at k − 1."""
    replayed: int = 0
    superseded: int = 0
    resumes: int = 0
    checkpoints: set[tuple[int, str]] = field(default_factory=set)
    published: Leaf | None = None
    end: Leaf | None = None

    @property
    def kind(self) -> str:
        """The type without its frame, such as "step"."""
        return str(self.record["t"]).removeprefix("tether.").removesuffix("/1")

    @property
    def body(self) -> Leaf:
        body: Leaf = self.record["body"]
        return body

    def begin(self, index: int, digest: bytes, record: Leaf) -> None:
        self.seq, self.hash, self.record = index, digest, record

    def finish(self) -> None:
        """Add the record at hand to what is known. Every check has seen it; it may still be nonsense."""
        self.previous_hash = self.hash.hex()
        self.tree.append(self.hash)
        self.attempt, self.epoch = self.record["attempt"], self.record["epoch"]
        body = self.body
        match self.kind:
            case "job.created":
                self.created = body
            case "job.start":
                self.owner, self.spec = (self.attempt, self.epoch), body["spec"]
            case "job.resume":
                self.owner = (self.attempt, self.epoch)
                self._supersede(body["from_step"])
            case "risk.table":
                self.table = body
            case "step":
                self.steps.append(_Step(self.seq, body["data_epoch"], tuple(body["rows"]), body["tokens"]))
            case "ckpt":
                self.checkpoints.add((body["step"], body["sha256"]))
            case "adapter.published":
                self.published = body
            case "job.end":
                self.end = body

    def _supersede(self, from_step: int) -> None:
        self.resumes += 1
        self.superseded += len(self.steps[from_step:])
        del self.steps[from_step:]
        # What grew from thrown-away steps is thrown away with them.
        self.checkpoints = {(step, digest) for step, digest in self.checkpoints if step <= from_step}
        if self.published and self.published["step"] > from_step:
            self.published = None


# --- records, sequence, chain, root -----------------------------------------------------------------------


def _records_at_end(job: _Job) -> str:
    return f"{job.tree.size} records, canonical and of known types"


def _sequence_each(job: _Job) -> None:
    if job.record["seq"] != job.seq:
        raise _Broken(f"seq is {job.record['seq']} where {job.seq} belongs", job.seq)
    if job.record["job"] != job.manifest["job"]:
        raise _Broken(f"it belongs to the job {job.record['job']}", job.seq)


def _sequence_at_end(job: _Job) -> str:
    return f"seq 0 to {job.tree.size - 1}, all of {job.manifest['job']}"


def _chain_each(job: _Job) -> None:
    if job.record["prev"] != job.previous_hash:
        raise _Broken(
            f"it names {_short(job.record['prev'])} as its predecessor, which is {_short(job.previous_hash)}",
            job.seq,
        )


def _chain_at_end(_: _Job) -> str:
    return "every record names the hash of the one before it"


def _root_at_end(job: _Job) -> str:
    found = {"size": job.tree.size, "root": job.tree.root().hex(), "head": job.previous_hash}
    for name, value in found.items():
        if job.manifest[name] != value:
            raise _Broken(f"the manifest's {name} is {job.manifest[name]}; the records give {value}")
    return "size, RFC 6962 root and head are the manifest's"


def _signature_at_end(_: _Job) -> str:
    raise _NotChecked(
        "this form is unsigned: compare the root with one that you hold from elsewhere,"
        " or whoever made the bundle may have made all of it"
    )


# --- grammar ----------------------------------------------------------------------------------------------


def _grammar_each(job: _Job) -> None:  # noqa: PLR0912 - one branch per rule reads as the list it is.
    kind = job.kind
    if (job.seq == 0) is not (kind == "job.created"):
        raise _Broken(f"{kind} at {job.seq}; job.created is the first record, and no other", job.seq)
    if job.end:
        raise _Broken(f"{kind} after job.end, which must be the last record", job.seq)
    if kind in _OWNERS_RECORDS and job.spec is None:
        raise _Broken(f"{kind} before job.start", job.seq)
    if kind == "job.created":
        if job.body["spec_sha256"] != digest_of(job.body["spec"]):
            raise _Broken("spec_sha256 is not the digest of spec", job.seq)
    elif kind == "job.start":
        if job.spec is not None:
            raise _Broken("a second job.start; what goes on is a job.resume", job.seq)
        if job.body["from_step"] or job.body["checkpoint_sha256"]:
            raise _Broken("job.start begins from a checkpoint; only job.resume may", job.seq)
        asked, resolved = _known(job.created)["spec"]["safety"], job.body["spec"]["safety"]
        other = _contradiction("safety", asked, resolved)
        if other:
            raise _Broken(f"job.start contradicts what job.created asked for: {other}", job.seq)
    elif kind == "job.resume":
        if digest_of(job.body["spec"]) != digest_of(job.spec):
            raise _Broken("the spec of job.resume is not that of job.start", job.seq)
    elif kind == "risk.table":
        if job.table is not None:
            raise _Broken("a second risk.table", job.seq)
    elif kind == "step":
        if job.table is None:
            raise _Broken("a step before the risk.table that says how risky its rows are", job.seq)
    elif kind == "ckpt" and job.body["sha256"] != digest_of(job.body["files"]):
        raise _Broken("sha256 is not the digest of files", job.seq)


_OWNERS_RECORDS = ("job.resume", "risk.table", "step", "ckpt", "adapter.published")


def _contradiction(path: str, asked: object, resolved: object) -> str | None:
    """Return where `resolved` differs from what was asked; null and "auto" leave the choice open."""
    if asked is None or asked == "auto":
        return None
    if isinstance(asked, dict) and isinstance(resolved, dict):
        parts = (_contradiction(f"{path}.{key}", item, resolved.get(key)) for key, item in asked.items())
        return next(filter(None, parts), None)
    return None if _same(asked, resolved) else f"{path} was {asked!r}, became {resolved!r}"


def _grammar_at_end(job: _Job) -> str:
    if job.spec is None:
        return "job.created first; the job was never started"
    return "the records come in an order that a job can have"


# --- attempts ---------------------------------------------------------------------------------------------


def _attempts_each(job: _Job) -> None:
    header = (job.record["attempt"], job.record["epoch"])
    attempt, epoch = header
    if job.kind == "job.created" and attempt:
        raise _Broken(f"job.created has attempt {attempt}; the first attempt begins with job.start", job.seq)
    if epoch < job.epoch:
        raise _Broken(f"epoch falls from {job.epoch} to {epoch}: a fenced worker's record got in", job.seq)
    if attempt < job.attempt:
        raise _Broken(f"attempt falls from {job.attempt} to {attempt}", job.seq)
    if job.kind in ("job.start", "job.resume"):
        if attempt <= max(0, job.owner[0]) or epoch <= job.owner[1]:
            raise _Broken(
                f"attempt {attempt}, epoch {epoch} is no new attempt after attempt {job.owner[0]},"
                f" epoch {job.owner[1]}",
                job.seq,
            )
    elif job.kind in _OWNERS_RECORDS and header != job.owner:
        raise _Broken(
            f"written under attempt {attempt}, epoch {epoch}; the lease was held under attempt"
            f" {job.owner[0]}, epoch {job.owner[1]}",
            job.seq,
        )
    _check_step_order(job)


def _check_step_order(job: _Job) -> None:
    last = len(job.steps)
    if job.kind == "step" and job.body["step"] != last + 1:
        raise _Broken(f"step {job.body['step']} follows step {last}", job.seq)
    if job.kind in ("ckpt", "adapter.published") and job.body["step"] > last:
        raise _Broken(f"{job.kind} of step {job.body['step']}, but step {last} is the last", job.seq)
    if job.kind == "job.resume":
        step, digest = job.body["from_step"], job.body["checkpoint_sha256"]
        if step > last:
            raise _Broken(f"resumes from step {step}, but step {last} is the last", job.seq)
        if (step > 0 or digest is not None) and (step, digest) not in job.checkpoints:
            raise _Broken(
                f"resumes step {step} from a checkpoint that no standing record of that step names", job.seq
            )


def _attempts_at_end(job: _Job) -> str:
    if job.spec is None:
        raise _NotChecked("the job was never started")
    steps = f"steps 1 to {len(job.steps)} each count once" if job.steps else "no step yet"
    return f"{steps}; {_count(job.resumes, 'resume')}, {_count(job.superseded, 'superseded step')}"


# --- risk table -------------------------------------------------------------------------------------------


def _risk_table_each(job: _Job) -> None:
    if job.kind != "risk.table":
        return
    leaf, created, safety = job.body, _known(job.created), _known(job.spec)["safety"]
    _check_critic(job, leaf, created["critic"])
    builder = RootBuilder()
    counts = dict.fromkeys(leaf["counts"], 0)
    last = -1
    for number, entry in enumerate(_table_entries(job)):
        try:
            row = parse_risk_row(entry)
            if row.row <= last:
                raise ValueError(f"row {row.row} comes after row {last}")
            _check_risk_row(row, leaf, safety)
        except ValueError as error:
            raise _Broken(str(error), number, RISK_TABLE) from error
        last = row.row
        job.s_of_row[row.row] = row.s
        counts[row.status] += 1
        builder.append(leaf_hash(entry))
    found = {"rows": builder.size, "root": builder.root().hex(), "counts": counts}
    for name, value in found.items():
        if leaf[name] != value:
            raise _Broken(f"the record's {name} is {leaf[name]}; the table gives {value}", job.seq)
    expected = created["training_rows"]
    if expected is not None and builder.size + leaf["dropped"] != expected:
        raise _Broken(
            f"{builder.size} rows and {leaf['dropped']} dropped are not the {expected} of the file", job.seq
        )
    if expected is not None and last >= expected:
        raise _Broken(f"the table names row {last} of a file of {expected} rows (from 0)", job.seq)


def _table_entries(job: _Job) -> Iterator[bytes]:
    if job.table_entries is None:
        raise _Broken(f"a risk table was recorded, but the bundle has no {RISK_TABLE}", job.seq)
    try:
        yield from job.table_entries
    except BundleError as error:
        raise _Broken(str(error)) from error


def _check_critic(job: _Job, leaf: Leaf, created: Leaf | None) -> None:
    """Check that the table was made by the critic that the job was created with, at its points."""
    used = {"sha256": leaf["critic_sha256"], "low": leaf["low"], "high": leaf["high"]}
    for name, value in used.items():
        expected = created[name] if created else None
        if not _same(expected, value):
            raise _Broken(f"the critic's {name} is {value}; the job was created with {expected}", job.seq)
    if (leaf["low"] is None) is not (leaf["high"] is None):
        raise _Broken("one of the critic's two points is missing", job.seq)


def _check_risk_row(row: RiskRow, leaf: Leaf, safety: Safety) -> None:
    """Raise ValueError unless the entry's status fits the critic and its s is what the control law gives."""
    if leaf["critic_sha256"] is None:
        allowed: tuple[str, ...] = ("unmeasured",)
        if safety["method"] not in ("none", "fixed_kl"):
            raise ValueError(f"the method {safety['method']} steers by risk, but no critic measured any")
    elif leaf["low"] is None:
        allowed = ("constant",)
    else:
        allowed = ("ok", "failed")
    if row.status not in allowed:
        raise ValueError(f"row {row.row} has status {row.status}; under this critic: {' or '.join(allowed)}")
    if row.status == "ok":
        s = compute_s(float(_known(row.log_odds)), float(leaf["low"]), float(leaf["high"]))
    elif row.status == "constant":
        critic = safety.get("critic")
        if not isinstance(critic, dict) or not _is_share(critic.get("s")):
            raise ValueError(
                f"row {row.row} has the constant critic's s, but the spec has no constant critic"
            )
        s = critic["s"]
    else:
        return
    if s != row.s:
        raise ValueError(f"row {row.row} has s {row.s}; its record gives {s}")


def _risk_table_at_end(job: _Job) -> str:
    if job.table is None:
        if job.table_entries is not None:
            raise _Broken("the bundle has a risk table that no record commits to")
        raise _NotChecked("the job ended, or stands, before its risk table")
    counts = ", ".join(f"{count} {status}" for status, count in job.table["counts"].items() if count)
    return f"{_count(job.table['rows'], 'row')} ({counts}) under the recorded root; every s re-derived"


# --- control law ------------------------------------------------------------------------------------------


def _control_law_each(job: _Job) -> None:
    if job.kind != "step":
        return
    step = job.body
    expected = {
        "critic_sha256": _known(job.table)["critic_sha256"],
        "policy_sha256": _known(job.created)["policy_sha256"],
    }
    unknown = next((row for row in step["rows"] if row not in job.s_of_row), None)
    if unknown is not None:
        raise _Broken(f"row {unknown} is not in the risk table", job.seq)
    try:
        safety = _safety_numbers(_known(job.spec)["safety"])
        risks = [job.s_of_row[row] for row in step["rows"]]
        expected |= _replay(safety, risks, float(step["floor"]))
    except ValueError as error:
        raise _Broken(str(error), job.seq) from error
    for name, value in expected.items():
        if step[name] != value:
            raise _Broken(f"{name} is {step[name]}; the replay gives {value}", job.seq)
    job.replayed += 1


def _replay(safety: Safety, risks: list[float | None], floor: float) -> dict[str, float | None]:
    """Return what the control law makes of a step whose rows have these s."""
    betas = [compute_row_beta(safety, s, floor) for s in risks]
    alphas = [compute_alpha(beta) for beta in betas]
    known = [float(s) for s in risks if s is not None]
    measured = len(known) == len(risks)
    return {
        "risk_mean": mean(known) if measured else None,
        "risk_max": max(known) if measured else None,
        "alpha_mean": mean(alphas),
        "alpha_min": min(alphas),
        "beta_mean": mean(betas),
        "beta_max": max(betas),
    }


_SAFETY_NUMBERS = {"adaptive_kl": ("beta_min", "beta_max", "threshold"), "fixed_kl": ("beta",), "none": ()}


def _safety_numbers(safety: Safety) -> Safety:
    """Return a spec's `safety` with its numbers as floats. Raises ValueError where one is missing or wild."""
    method = safety["method"]
    if method not in _SAFETY_NUMBERS:
        raise ValueError(f"the method {method} is not known; known: {', '.join(_SAFETY_NUMBERS)}")
    numbers = {name: safety.get(name) for name in _SAFETY_NUMBERS[method]}
    for name, value in numbers.items():
        if not _is_share(value):
            raise ValueError(f"safety.{name} is {value!r}; expected a number from 0 to 1")
    if method == "adaptive_kl" and not isinstance(safety.get("schedule"), str):
        raise ValueError(f"safety.schedule is {safety.get('schedule')!r}; expected a word")
    return {**safety, **{name: float(value) for name, value in numbers.items() if value is not None}}


def _control_law_at_end(job: _Job) -> str:
    if not job.replayed:
        raise _NotChecked("no step was recorded")
    return f"risk, alpha and beta of {_count(job.replayed, 'step')} replayed bit for bit"


# --- coverage ---------------------------------------------------------------------------------------------


def _coverage_at_end(job: _Job) -> str:
    if not job.steps:
        raise _NotChecked("no step was recorded")
    data_epoch, left = 0, set(job.s_of_row)
    last = job.steps[0]
    for step in job.steps:
        if step.data_epoch != data_epoch:
            if step.data_epoch != data_epoch + 1 or last is step:
                raise _Broken(f"data epoch {step.data_epoch} where {data_epoch} or its end was due", step.seq)
            _check_all_seen(left, last)
            data_epoch, left = step.data_epoch, set(job.s_of_row)
        for row in step.rows:
            if row not in left:
                raise _Broken(f"row {row} is trained on twice in data epoch {data_epoch}", step.seq)
            left.discard(row)
        last = step
    if job.end is None or job.end["state"] != "succeeded":
        return f"no row twice in a data epoch; {data_epoch} complete, one under way"
    _check_all_seen(left, last)
    planned = job.spec.get("n_epochs") if job.spec else None
    if planned != data_epoch + 1:
        raise _Broken(f"{_count(data_epoch + 1, 'data epoch')} trained; the spec says {planned!r}", last.seq)
    return f"each of {_count(len(job.s_of_row), 'row')} once in each of {_count(planned, 'data epoch')}"


def _check_all_seen(left: set[int], last: _Step) -> None:
    if left:
        raise _Broken(
            f"data epoch {last.data_epoch} ends without {_count(len(left), 'row')}, such as row {min(left)}",
            last.seq,
        )


# --- files beside the bundle ------------------------------------------------------------------------------


def _training_file_at_end(job: _Job) -> str:
    if job.data is None:
        raise _NotChecked("no training file was given")
    found, expected = _hash_file(job.data), _known(job.created)["training_sha256"]
    if found != expected:
        raise _Broken(f"its SHA-256 is {found}; the record says {expected}")
    return "the file is the one that the job was created with"


def _adapter_at_end(job: _Job) -> str:
    if job.adapter is None:
        raise _NotChecked("no adapter was given")
    if job.published is None:
        raise _Broken("an adapter was given, but the record has none published")
    found = _hash_file(job.adapter)
    if found != job.published["zip_sha256"]:
        raise _Broken(f"its SHA-256 is {found}; the record says {job.published['zip_sha256']}")
    size = job.adapter.stat().st_size
    if size != job.published["bytes"]:
        raise _Broken(f"it has {size} bytes; the record says {job.published['bytes']}")
    files = _hash_members(job.adapter)
    if files != job.published["files"]:
        names = sorted(
            name
            for name in files.keys() | job.published["files"].keys()
            if files.get(name) != job.published["files"].get(name)
        )
        raise _Broken(f"the record and the zip differ in {', '.join(map(repr, names[:5]))}")
    return f"the zip and its {_count(len(files), 'file')} are those published at step {job.published['step']}"


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _Broken(f"{path.name} cannot be read: {error.strerror}") from error


def _hash_members(path: Path) -> dict[str, str]:
    result: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.filename in result:
                    raise _Broken(f"{info.filename[:80]!r} stands twice in the zip")
                with archive.open(info) as member:
                    result[info.filename] = hashlib.file_digest(member, "sha256").hexdigest()  # type: ignore[arg-type]
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
    ) as error:
        raise _Broken(f"the zip cannot be read: {error}") from error
    return result


# --- end --------------------------------------------------------------------------------------------------


def _end_at_end(job: _Job) -> str:
    if job.end is None:
        raise _NotChecked("the job had not ended when the bundle was made; records after these are not shown")
    seq = job.tree.size - 1
    found = {"steps": len(job.steps), "trained_tokens": sum(step.tokens for step in job.steps)}
    for name, value in found.items():
        if job.end[name] != value:
            raise _Broken(f"job.end says {name} {job.end[name]}; the steps that count give {value}", seq)
    state, error = job.end["state"], job.end["error"]
    if (state == "failed" and error is None) or (state == "succeeded" and error is not None):
        raise _Broken(f"job.end says {state} with the error {error}", seq)
    if state == "succeeded" and (not job.published or job.published["step"] != len(job.steps)):
        raise _Broken("the job succeeded, but no adapter of its last step was published", seq)
    if state == "succeeded" and not job.steps:
        raise _Broken("the job succeeded without a step", seq)
    because = f" ({error})" if error else ""
    return f"{state}{because} after {_count(len(job.steps), 'step')}, {found['trained_tokens']} tokens"


def _describe_protection(job: _Job) -> str:
    spec = job.spec or (job.created["spec"] if job.created else None)
    if spec is None:
        return "unknown: the record does not say by which method the job was trained"
    safety = spec["safety"]
    method = safety["method"]
    if method == "none":
        return "UNPROTECTED: method none, so nothing held the model to its reference"
    numbers = ", ".join(f"{name} {safety.get(name)}" for name in _SAFETY_NUMBERS.get(method, ()))
    greatest = safety.get("beta_max" if method == "adaptive_kl" else "beta")
    if greatest == 0:
        return f"UNPROTECTED: method {method}, but its beta is never above 0"
    return f"{method}, {numbers}" if numbers else f"{method}: not known to this verifier"


# --- small things -----------------------------------------------------------------------------------------


def _known(value: T | None) -> T:
    """Return what an earlier check has made sure of: these checks do not run where that one failed."""
    if value is None:
        raise AssertionError("a check ran without the one that it builds on")
    return value


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _same(a: object, b: object) -> bool:
    """Tell whether two JSON values are equal; unlike Python's ==, true is not 1."""
    return a == b and isinstance(a, bool) is isinstance(b, bool)


def _short(digest: str) -> str:
    return f"{digest[:12]}…"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


_EACH: dict[str, Callable[[_Job], None]] = {
    "sequence": _sequence_each,
    "chain": _chain_each,
    "grammar": _grammar_each,
    "attempts": _attempts_each,
    "risk table": _risk_table_each,
    "control law": _control_law_each,
}
_AT_END: dict[str, Callable[[_Job], str]] = {
    "records": _records_at_end,
    "sequence": _sequence_at_end,
    "chain": _chain_at_end,
    "root": _root_at_end,
    "signature": _signature_at_end,
    "grammar": _grammar_at_end,
    "attempts": _attempts_at_end,
    "risk table": _risk_table_at_end,
    "control law": _control_law_at_end,
    "coverage": _coverage_at_end,
    "training file": _training_file_at_end,
    "adapter": _adapter_at_end,
    "end": _end_at_end,
}
