"""The offline verifier: what an evidence bundle claims, checked in a fixed order against itself.

One pass over the records, each handed to every check; a check stops at the first record that breaks it and
names that record. Checks are numbered in the order of `CHECKS`. It needs the bundle and nothing else, and
nothing in a bundle makes it raise. Standard library only.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from app.domain import (
    checks_files,
    checks_lineage,
    checks_log,
    checks_plan,
    checks_sets,
    checks_structure,
    checks_training,
)
from app.domain.bundle import LEAVES, BundleError, read_bundle
from app.domain.ledger import parse_leaf
from app.domain.merkle import leaf_hash
from app.domain.report import CHECKS, Check, Report
from app.domain.safety_law import describe_protection
from app.domain.trust import Trust
from app.domain.verification import Broken, JobSoFar, NotChecked, Parent

_EACH = checks_structure.EACH | checks_training.EACH | checks_sets.EACH | checks_plan.EACH | checks_log.EACH
_AT_END = (
    checks_structure.AT_END
    | checks_training.AT_END
    | checks_files.AT_END
    | checks_sets.AT_END
    | checks_plan.AT_END
    | checks_lineage.AT_END
    | checks_log.AT_END
)


def verify_bundle(
    path: Path,
    *,
    adapter: Path | None = None,
    data: Path | None = None,
    parent: Path | None = None,
    trust: Trust | None = None,
) -> Report:
    """Check a bundle; with the adapter's zip and the training file, check these against the record too.

    `parent` is the bundle of the job whose adapter this one goes on from; it is checked as a bundle of its own, and then
    what this job says of it. `trust` says whose signatures count; then there must be one. Never raises for what the files hold: whatever is wrong with them is a failed check.
    """
    found = Parent(*_replay(parent, trust=trust)) if parent else None
    return _replay(path, adapter=adapter, data=data, parent=found, trust=trust)[0]


def _replay(
    path: Path,
    *,
    adapter: Path | None = None,
    data: Path | None = None,
    parent: Parent | None = None,
    trust: Trust | None = None,
) -> tuple[Report, JobSoFar | None]:
    try:
        with read_bundle(path) as bundle:
            job = JobSoFar(bundle.manifest, bundle.risk_table(), adapter, data, parent, bundle.log(), trust)
            return _check(job, bundle.leaves()), job
    except BundleError as error:
        unread = [Check(name, "not checked", "the bundle cannot be read") for name in CHECKS[1:]]
        return Report((Check("records", "failed", str(error)), *unread)), None


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
        protection=describe_protection(job),
    )


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
    "plan": ("grammar", "attempts", "risk table", "sets"),
}


def _is_blocked(name: str, outcomes: Mapping[str, Check]) -> str | None:
    """Return the failed check without which `name` means nothing, or `name` itself where it has an outcome."""
    if name in outcomes:
        return name
    needs = ("records", *_NEEDS.get(name, ()))
    return next((need for need in needs if need in outcomes and outcomes[need].outcome == "failed"), None)
