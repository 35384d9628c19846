"""The check of what is missing: exactly the records that the signed log says were pruned. Standard library only.

What cannot be known without these records is not checked, and says so: `withheld` names those checks.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from app.domain.bundle import CHECKPOINT
from app.domain.checks_provenance import check_without_records
from app.domain.installation_log import Checkpoint, parse_checkpoint
from app.domain.merkle import leaf_hash, verify_inclusion
from app.domain.note import split_note
from app.domain.report import CHECKS
from app.domain.retention import (
    PRUNED_EVENT,
    STEPS,
    PruningLine,
    digest_of_pruning,
    is_pruned_in,
    parse_pruning_line,
)
from app.domain.verification import Broken, JobSoFar, counted, ensured

_ALWAYS = frozenset(
    {
        "records",
        "sequence",
        "chain",
        "root",
        "signature",
        "training file",
        "lineage",
        "heads",
        "held",
        "retention",
    }
)
"""What needs no more than the first record, the hashes of the others, and the log."""
_NEED_STEPS = frozenset({"control law", "coverage", "end", "plan"})
_NEED_SOME = frozenset({"grammar", "attempts", "sets"})
"""What is looked for in the records that are left, and is not shown by them."""


class Withheld(NamedTuple):
    """Which checks need records that are missing."""

    whole: frozenset[str] = frozenset()
    """Not begun with."""
    partly: frozenset[str] = frozenset()
    """Carried out on what is left: they may fail, and are not passed."""
    reason: str = ""
    instead: Mapping[str, Callable[[JobSoFar], str]] = MappingProxyType({})
    """What is carried out in the place of a check that needs them."""


def withheld(job: JobSoFar) -> Withheld:
    """Read which records are missing, and return what cannot be checked. Raises Broken where that cannot be read."""
    if job.log is None or job.log.pruning is None:
        return Withheld()
    try:
        job.pruning = parse_pruning_line(job.log.pruning)
    except ValueError as error:
        raise Broken(f"what was pruned cannot be read: {error}") from error
    records = counted(job.pruning.pruning["records"], "record")
    reason = f"needs records that were pruned ({records}, by the log)"
    if job.pruning.pruning["scope"] == STEPS:
        return Withheld(_NEED_STEPS, _NEED_SOME, reason)
    # The record of the adapter is gone; what the notary signed about it may be there.
    instead = {"provenance": check_without_records} if job.provenance is not None else {}
    return Withheld(NOTHING_KNOWN.whole, reason=reason, instead=instead)


NOTHING_KNOWN = Withheld(
    frozenset(CHECKS) - _ALWAYS, reason="needs records that were pruned, nobody can say which"
)


def _retention_each(job: JobSoFar) -> None:
    if job.pruning is not None and is_pruned_in(job.pruning.pruning["scope"], job.kind):
        raise Broken(f"a {job.kind} that the log says was pruned with all of its kind", job.seq)


def _retention_at_end(job: JobSoFar) -> str:
    if job.pruning is None:
        return "no record is missing"
    line, pruning = job.pruning, job.pruning.pruning
    checkpoint = _check_event(job, line)
    found = {"records": job.pruned.size, "root": job.pruned.root()}
    for name, value in found.items():
        if pruning[name] != value:
            raise Broken(
                f"the log says of what was pruned {name} {pruning[name]}; what is missing has {value}"
            )
    counts = pruning["counts"]
    if sum(counts.values()) != pruning["records"]:
        raise Broken(f"the counts of the pruning do not add up to its {pruning['records']} records")
    for kind in counts:
        if not is_pruned_in(pruning["scope"], kind):
            raise Broken(f"a {kind} was pruned, which a pruning of the scope {pruning['scope']} leaves")
    if job.end is None:
        raise Broken("records were pruned of a job whose end is not on record")
    if counts.get("step", 0) < job.end["steps"]:
        raise Broken(f"{counts.get('step', 0)} steps were pruned; job.end has {job.end['steps']}")
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return (
        f"{counted(pruning['records'], 'record')} missing, exactly those that the log {checkpoint.origin} says were pruned"
        f" (by its word {shown})"
    )


def _check_event(job: JobSoFar, line: PruningLine) -> Checkpoint:
    """Check that the log says of this job that exactly this was pruned."""
    try:
        checkpoint = parse_checkpoint(split_note(ensured(job.log).checkpoint)[0])
    except ValueError as error:
        raise Broken(f"{CHECKPOINT}: {error}") from error
    name = job.manifest["job"]
    expected = {"event": PRUNED_EVENT, "subject": name, "sha256": digest_of_pruning(line.pruning_bytes)}
    for field, value in expected.items():
        if line.event[field] != value:
            raise Broken(f"{field} of the log's event is {line.event[field]}; expected {value}")
    if line.pruning["job"] != name:
        raise Broken(f"the pruning is of the job {line.pruning['job']}")
    if not verify_inclusion(
        leaf_hash(line.event_bytes), line.at, checkpoint.size, line.proof, checkpoint.root
    ):
        raise Broken("the proof of the log's event does not lead to the root of the checkpoint")
    return checkpoint


EACH: dict[str, Callable[[JobSoFar], None]] = {"retention": _retention_each}
AT_END: dict[str, Callable[[JobSoFar], str]] = {"retention": _retention_at_end}
