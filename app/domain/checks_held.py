"""The check of what was kept from before: receipts and checkpoints, which a later bundle must not contradict.

Whoever has database and key can make another history and sign it too, or show one history here and another one there.
What somebody else kept from before is what shows it. Standard library and cryptography.
"""

from collections.abc import Callable

from app.domain.installation_log import Checkpoint, HeadLine, parse_checkpoint
from app.domain.merkle import leaf_hash, verify_inclusion
from app.domain.note import split_note
from app.domain.trust import open_checkpoint
from app.domain.verification import Broken, Held, JobSoFar, NotChecked


def _held_each(job: JobSoFar) -> None:
    """Compare each receipt with the root over the records before the one at hand."""
    if job.held:
        _compare(job)


def _compare(job: JobSoFar) -> None:
    for held in job.held:
        if held.head is None or held.head.leaf["size"] != job.tree.size:
            continue
        claimed, found = held.head.leaf["root"], job.tree.root().hex()
        if claimed != found:
            raise Broken(
                f"{held.name} has the root {claimed} over the first {job.tree.size} records; these give {found}:"
                " one of them is not as it was"
            )


def _held_at_end(job: JobSoFar) -> str:
    if not job.held:
        raise NotChecked("no receipt or checkpoint from before was given")
    _compare(job)
    shown = _shown(job)
    found = [_check(job, held, shown) for held in job.held]
    said = "; ".join(text for text, _ in found)
    if not all(is_proved for _, is_proved in found):
        raise NotChecked(said)
    return said


def _shown(job: JobSoFar) -> Checkpoint | None:
    if job.log is None:
        return None
    try:
        return parse_checkpoint(split_note(job.log.checkpoint)[0])
    except ValueError as error:
        raise Broken(f"the bundle's checkpoint: {error}") from error


def _check(job: JobSoFar, held: Held, shown: Checkpoint | None) -> tuple[str, bool]:
    """Return what a thing that was kept says of the bundle, and whether that is proved."""
    kept = _open(job, held)
    if held.head is not None:
        _check_receipt(job, held.name, held.head, kept)
    if shown is not None and shown.origin == kept.origin:
        _check_sizes(held, kept, shown)
        if held.head is not None:
            _check_still_there(job, held.name, held.head)
    if held.head is not None:
        return f"{held.name} has the same first {held.head.leaf['size']} records", True
    if shown is None:
        return f"{held.name} is a checkpoint, and the bundle is unsigned", False
    if shown.origin != kept.origin:
        return f"{held.name} is of the log {kept.origin}, and the bundle of {shown.origin}", False
    if kept.size == shown.size:
        return f"{held.name} is the bundle's own checkpoint", True
    return (
        f"{held.name} is of {kept.size} leaves of the log, and the bundle's checkpoint of {shown.size}; whether it only grew"
        " in between, an audit of the log shows",
        False,
    )


def _open(job: JobSoFar, held: Held) -> Checkpoint:
    """Return the checkpoint that was kept. Without a policy it counts because it was kept."""
    try:
        if job.trust is not None:
            return open_checkpoint(held.note, job.trust)[0]
        return parse_checkpoint(split_note(held.note)[0])
    except ValueError as error:
        raise Broken(f"{held.name}: {error}") from error


def _check_receipt(job: JobSoFar, name: str, head: HeadLine, kept: Checkpoint) -> None:
    if not verify_inclusion(leaf_hash(head.leaf_bytes), head.at, kept.size, head.proof, kept.root):
        raise Broken(f"{name}: its proof does not lead to the root of its checkpoint")
    if head.leaf["job"] != job.manifest["job"]:
        raise Broken(f"{name} is a receipt of the job {head.leaf['job']}")
    if head.leaf["size"] > job.tree.size:
        raise Broken(f"{name} knows {head.leaf['size']} records of this job; the bundle has {job.tree.size}")


def _check_sizes(held: Held, kept: Checkpoint, shown: Checkpoint) -> None:
    """Check that nobody signed two logs of one name and size, and that what is shown is not older than what was kept."""
    if kept.size == shown.size and kept.root != shown.root:
        raise Broken(
            f"SPLIT VIEW: the log {kept.origin} was signed with two roots at size {kept.size}:"
            f" {kept.root.hex()} in {held.name}, {shown.root.hex()} in the bundle"
        )
    if kept.size > shown.size:
        raise Broken(
            f"the bundle's checkpoint is STALE: it is of {shown.size} leaves, and {held.name} of {kept.size}; ask for a"
            " new bundle"
        )


def _check_still_there(job: JobSoFar, name: str, head: HeadLine) -> None:
    """Check that the head that was kept stands in the log where it stood: the bundle has all heads of the job."""
    heads = job.heads.lines if job.heads else ()
    if not any(each.at == head.at and each.leaf_bytes == head.leaf_bytes for each in heads):
        raise Broken(
            f"SPLIT VIEW: {name} proves a head of this job at index {head.at}; the log that the bundle shows has none there"
        )


EACH: dict[str, Callable[[JobSoFar], None]] = {"held": _held_each}
AT_END: dict[str, Callable[[JobSoFar], str]] = {"held": _held_at_end}
