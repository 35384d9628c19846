"""The offline verifier: what an evidence bundle claims, checked in a fixed order against itself.

One pass over the records, each handed to every check; a check stops at the first record that breaks it and
names that record. Checks are numbered in the order of `CHECKS`. It needs the bundle and nothing else, and
nothing in a bundle makes it raise. Standard library only.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from app.domain import (
    checks_evaluation,
    checks_files,
    checks_gate,
    checks_held,
    checks_lineage,
    checks_log,
    checks_plan,
    checks_provenance,
    checks_retention,
    checks_rows,
    checks_sets,
    checks_structure,
    checks_training,
)
from app.domain.bundle import LEAVES, BundleError, read_bundle
from app.domain.ledger import parse_leaf
from app.domain.merkle import leaf_hash
from app.domain.report import CHECKS, Check, Report
from app.domain.retention import parse_pruned
from app.domain.safety_law import describe_protection
from app.domain.trust import Trust
from app.domain.verification import MAX_RECORDS, Broken, Held, JobSoFar, NotChecked, Parent

_EACH = checks_structure.EACH | checks_training.EACH | checks_sets.EACH | checks_plan.EACH | checks_log.EACH
_EACH |= checks_evaluation.EACH
_EACH |= checks_retention.EACH | checks_provenance.EACH | checks_held.EACH | checks_gate.EACH
_AT_END = (
    checks_structure.AT_END
    | checks_training.AT_END
    | checks_files.AT_END
    | checks_sets.AT_END
    | checks_plan.AT_END
    | checks_lineage.AT_END
    | checks_log.AT_END
    | checks_evaluation.AT_END
    | checks_retention.AT_END
    | checks_rows.AT_END
    | checks_provenance.AT_END
    | checks_held.AT_END
    | checks_gate.AT_END
)


UNFORESEEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a check may raise for a record of which nobody has thought."""
STUMBLED = "what the record says cannot be checked"


def verify_bundle(
    path: Path,
    *,
    adapter: Path | None = None,
    data: Path | None = None,
    parent: Path | None = None,
    trust: Trust | None = None,
    held: tuple[Held, ...] = (),
    must_have_ended: bool = False,
    rows: Path | None = None,
    dataset_key: bytes | None = None,
) -> Report:
    """Check a bundle; with the adapter's zip and the training file, check these against the record too.

    `parent` is the bundle of the job whose adapter this one goes on from; it is checked as a bundle of its own, and then
    what this job says of it. `trust` says whose signatures count; then there must be one. `held` is what was kept from
    before. `rows` are rows as tokens, compared with their commitments under `dataset_key`. Never raises for what the files hold: whatever is wrong with them is a failed check.
    """
    found = Parent(*_replay(parent, trust=trust)) if parent else None
    return _replay(
        path,
        adapter=adapter,
        data=data,
        parent=found,
        trust=trust,
        held=held,
        must_have_ended=must_have_ended,
        rows=rows,
        dataset_key=dataset_key,
    )[0]


def _replay(
    path: Path,
    *,
    adapter: Path | None = None,
    data: Path | None = None,
    parent: Parent | None = None,
    trust: Trust | None = None,
    held: tuple[Held, ...] = (),
    must_have_ended: bool = False,
    rows: Path | None = None,
    dataset_key: bytes | None = None,
) -> tuple[Report, JobSoFar | None]:
    try:
        with read_bundle(path) as bundle:
            job = JobSoFar(bundle.manifest, bundle.risk_table(), adapter, data, parent, bundle.log(), trust)
            job.held, job.must_have_ended = held, must_have_ended
            job.rows, job.dataset_key = rows, dataset_key
            job.documents, job.provenance = bundle.documents(), bundle.provenance()
            job.policy = bundle.policy()
            return _check(job, bundle.leaves()), job
    except BundleError as error:
        unread = [Check(name, "not checked", "the bundle cannot be read") for name in CHECKS[1:]]
        return Report((Check("records", "failed", str(error)), *unread), unreadable=str(error)), None


def verify_contents(
    manifest: Mapping[str, Any],
    leaves: Iterable[bytes],
    risk_table: Iterable[bytes] | None,
    *,
    adapter: Path | None = None,
    data: Path | None = None,
) -> Report:
    """Check records that come from elsewhere than a bundle; `manifest` has job, size, root and head."""
    return _check(JobSoFar(manifest, risk_table, adapter, data), leaves)


def _check(job: JobSoFar, leaves: Iterable[bytes]) -> Report:
    manifest = job.manifest
    outcomes: dict[str, Check] = {}
    missing = _find_missing(job, outcomes)
    each = [(name, _EACH[name]) for name in CHECKS if name in _EACH and name not in missing.whole]
    index = 0
    try:
        for leaf in leaves:
            if index == MAX_RECORDS:
                raise ValueError(f"the bundle has more than {MAX_RECORDS} records, and no more are read")
            gone = parse_pruned(leaf) if job.is_pruned else None
            if gone is not None:
                _pass_over(job, index, gone, outcomes)
                index += 1
                continue
            job.begin(index, leaf_hash(leaf), parse_leaf(leaf))
            for name, check in each:
                if not (outcomes and _is_blocked(name, outcomes)):
                    _attempt(name, check, job, outcomes)
            job.finish()
            index += 1
        if not index:
            raise ValueError("there is no record")
    except UNFORESEEN as error:
        outcomes["records"] = Check("records", "failed", str(error), index, LEAVES)
    for name in CHECKS:
        blocker = _is_blocked(name, outcomes)
        if name not in outcomes and blocker:
            outcomes[name] = Check(name, "not checked", f"the check {blocker!r} failed")
        elif name not in outcomes and name in missing.instead:
            _attempt(name, missing.instead[name], job, outcomes)
        elif name not in outcomes and name in missing.whole | missing.partly:
            outcomes[name] = Check(name, "not checked", missing.reason)
        elif name not in outcomes:
            _attempt(name, _AT_END[name], job, outcomes)
    return Report(
        checks=tuple(outcomes[name] for name in CHECKS),
        job=manifest["job"],
        size=manifest["size"],
        root=manifest["root"],
        state=job.end["state"] if job.end else None,
        protection=describe_protection(job),
        **_signature_of(job, outcomes),
    )


def _signature_of(job: JobSoFar, outcomes: Mapping[str, Check]) -> dict[str, Any]:
    if job.log is None:
        return {"signature": "none"}
    if outcomes["signature"].outcome != "ok":
        return {"signature": "unverified"}
    covered = checks_log.count_signed(job) if outcomes["heads"].outcome == "ok" else 0
    return {"signature": "verified", "signed": covered}


def _find_missing(job: JobSoFar, outcomes: dict[str, Check]) -> checks_retention.Withheld:
    try:
        return checks_retention.withheld(job)
    except Broken as broken:
        outcomes["retention"] = Check("retention", "failed", *broken.check_fields)
        return checks_retention.NOTHING_KNOWN


def _pass_over(job: JobSoFar, index: int, digest: bytes, outcomes: dict[str, Check]) -> None:
    """Go past a record that was pruned. Raises ValueError for the first one, without which nothing has a meaning."""
    if not index:
        raise ValueError("the first record was pruned, which no pruning takes")
    for name in ("heads", "held"):
        if not _is_blocked(name, outcomes):
            _attempt(name, _EACH[name], job, outcomes)
    job.pass_over(index, digest)


def _attempt(
    name: str, check: Callable[[JobSoFar], str | None], job: JobSoFar, outcomes: dict[str, Check]
) -> None:
    try:
        detail = check(job)
        if detail is not None:
            outcomes[name] = Check(name, "ok", detail)
    except Broken as broken:
        outcomes[name] = Check(name, "failed", *broken.check_fields)
    except NotChecked as reason:
        outcomes[name] = Check(name, "not checked", str(reason))
    except UNFORESEEN as error:
        # A bundle comes from whoever it accuses: what a check stumbles over is no reason to pass it, nor to end without a word.
        outcomes[name] = Check(name, "failed", f"{STUMBLED}: {error!r}", job.seq, LEAVES)


_NEEDS = {
    "attempts": ("grammar",),
    "risk table": ("grammar",),
    "control law": ("grammar", "risk table"),
    "coverage": ("grammar", "attempts", "risk table"),
    "training file": ("grammar",),
    "adapter": ("grammar", "attempts"),
    "end": ("grammar", "attempts"),
    "sets": ("grammar",),
    "lineage": ("grammar",),
    "evaluation": ("grammar", "attempts"),
    "gate": ("grammar", "risk table"),
    "held": ("heads",),
    "plan": ("grammar", "attempts", "risk table", "sets"),
    "rows": ("grammar", "risk table"),
    "provenance": ("grammar", "attempts", "adapter", "end"),
}


def _is_blocked(name: str, outcomes: Mapping[str, Check]) -> str | None:
    """Return the failed check without which `name` means nothing, or `name` itself where it has an outcome."""
    if name in outcomes:
        return name
    needs = ("records", *_NEEDS.get(name, ()))
    return next((need for need in needs if need in outcomes and outcomes[need].outcome == "failed"), None)
