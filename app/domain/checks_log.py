"""The checks of the signature and of what stands under it: the job's heads in the installation's log.

Standard library and cryptography.
"""

from collections.abc import Callable

from app.domain.bundle import CHECKPOINT, HEADS
from app.domain.installation_log import HeadLine, forked_from, parse_checkpoint, parse_head_line
from app.domain.merkle import leaf_hash, verify_inclusion
from app.domain.note import split_note
from app.domain.trust import open_checkpoint
from app.domain.verification import Broken, Heads, JobSoFar, NotChecked, counted, ensured


def _signature_at_end(job: JobSoFar) -> str:
    if job.log is None and job.trust is None:
        raise NotChecked(
            "this form is unsigned: compare the root with one that you hold from elsewhere,"
            " or whoever made the bundle may have made all of it"
        )
    if job.log is None:
        raise Broken("the trust policy asks for a signed checkpoint; the bundle has none")
    if job.trust is None:
        raise NotChecked("no trust policy was given that says whose signature counts")
    try:
        checkpoint, signed = open_checkpoint(job.log.checkpoint, job.trust)
    except ValueError as error:
        raise Broken(f"{CHECKPOINT}: {error}") from error
    by = ", ".join(f"{key.name}+{key.id.hex()}" for key in signed)
    return f"the checkpoint of {checkpoint.origin} is signed by {by}{_describe_fork(checkpoint.origin)}"


def _describe_fork(origin: str) -> str:
    before = forked_from(origin)
    return f"; this log is a FORK: it does not go on from what {before} had signed before" if before else ""


def _heads_each(job: JobSoFar) -> None:
    """Compare each head with the root over the records before the one at hand."""
    if job.log is None:
        return
    if job.heads is None:
        job.heads = _read_heads(job)
    _compare(job, job.heads)


def _read_heads(job: JobSoFar) -> Heads:
    proof = ensured(job.log)
    try:
        checkpoint = parse_checkpoint(split_note(proof.checkpoint)[0])
    except ValueError as error:
        raise Broken(f"{CHECKPOINT}: {error}") from error
    heads: list[HeadLine] = []
    for number, line in enumerate(proof.heads):
        try:
            head = parse_head_line(line)
        except ValueError as error:
            raise Broken(str(error), number, HEADS) from error
        before = heads[-1] if heads else None
        if head.leaf["job"] != job.manifest["job"]:
            raise Broken(f"a head of the job {head.leaf['job']}", number, HEADS)
        if head.leaf["previous"] != (before and before.at):
            raise Broken(
                f"it names {head.leaf['previous']} as the job's previous head; here that is {before and before.at}",
                number,
                HEADS,
            )
        if before is not None and not (before.at < head.at and before.leaf["size"] < head.leaf["size"]):
            raise Broken("it is not later than the head before it", number, HEADS)
        if not verify_inclusion(
            leaf_hash(head.leaf_bytes), head.at, checkpoint.size, head.proof, checkpoint.root
        ):
            raise Broken("its proof does not lead to the root of the checkpoint", number, HEADS)
        heads.append(head._replace(proof=[]))
    if not heads:
        raise Broken("the checkpoint is there, and no head of this job under it")
    return Heads(checkpoint, heads)


def _compare(job: JobSoFar, heads: Heads) -> None:
    while heads.compared < len(heads.lines) and heads.lines[heads.compared].leaf["size"] == job.tree.size:
        claimed, found = heads.lines[heads.compared].leaf["root"], job.tree.root().hex()
        if claimed != found:
            same = heads.lines[heads.compared - 1].leaf["size"] if heads.compared else 0
            raise Broken(
                f"the log has the root {claimed} over the first {job.tree.size} records; these give {found}: of the records"
                f" {same} to {job.tree.size - 1} one is not as it was signed",
                heads.compared,
                HEADS,
            )
        heads.compared += 1


def _heads_at_end(job: JobSoFar) -> str:
    if job.log is None:
        raise NotChecked("the bundle holds nothing of the installation's log")
    heads = ensured(job.heads)
    _compare(job, heads)
    if heads.compared < len(heads.lines):
        size = heads.lines[heads.compared].leaf["size"]
        raise Broken(
            f"the log knows {size} records of this job; the bundle has {job.tree.size}", heads.compared, HEADS
        )
    last = heads.lines[-1].leaf
    missing = job.tree.size - last["size"]
    # Without a policy nobody has asked for a signature, and an ended job has none for some seconds.
    if missing and job.end and job.trust:
        raise Broken(
            f"the last {counted(missing, 'record')} of a job that ended, and so its end, are not under the checkpoint"
        )
    covered = "every record" if not missing else f"all but the last {counted(missing, 'record')}"
    return (
        f"{counted(len(heads.lines), 'head')} in the log {heads.checkpoint.origin} at size {heads.checkpoint.size};"
        f" {covered} under its root"
    )


def count_signed(job: JobSoFar) -> int:
    """Return how many records are under the last of the heads that were compared."""
    return int(job.heads.lines[-1].leaf["size"]) if job.heads else 0


EACH: dict[str, Callable[[JobSoFar], None]] = {"heads": _heads_each}
AT_END: dict[str, Callable[[JobSoFar], str]] = {"signature": _signature_at_end, "heads": _heads_at_end}
