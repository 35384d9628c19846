"""The checks of the record as a record: its sequence, chain and root, its grammar, its attempts.

A check may look at each record in turn (`EACH`) and says at the end what came of it (`AT_END`). Standard
library only.
"""

from collections.abc import Callable

from app.domain.leaf_schema import Leaf
from app.domain.ledger import digest_of
from app.domain.verification import Broken, JobSoFar, NotChecked, counted, ensured, is_same

# --- records, sequence, chain, root -----------------------------------------------------------------------


def _records_at_end(job: JobSoFar) -> str:
    left = job.tree.size - job.pruned.size
    more = f"; {job.pruned.size} more were pruned" if job.pruned.size else ""
    return f"{left} records, canonical and of known types{more}"


def _sequence_each(job: JobSoFar) -> None:
    if job.record["seq"] != job.seq:
        raise Broken(f"seq is {job.record['seq']} where {job.seq} belongs", job.seq)
    if job.record["job"] != job.manifest["job"]:
        raise Broken(f"it belongs to the job {job.record['job']}", job.seq)


def _sequence_at_end(job: JobSoFar) -> str:
    if job.pruned.size:
        return f"every record that is left at its place in seq 0 to {job.tree.size - 1}, all of {job.manifest['job']}"
    return f"seq 0 to {job.tree.size - 1}, all of {job.manifest['job']}"


def _chain_each(job: JobSoFar) -> None:
    if job.record["prev"] != job.previous_hash:
        raise Broken(
            f"it names {_short(job.record['prev'])} as its predecessor, which is {_short(job.previous_hash)}",
            job.seq,
        )


def _chain_at_end(job: JobSoFar) -> str:
    if job.pruned.size:
        return "every record that is left names the hash of the one before it"
    return "every record names the hash of the one before it"


def _root_at_end(job: JobSoFar) -> str:
    found = {"size": job.tree.size, "root": job.tree.root().hex(), "head": job.previous_hash}
    for name, value in found.items():
        if job.manifest[name] != value:
            raise Broken(f"the manifest's {name} is {job.manifest[name]}; the records give {value}")
    return "size, RFC 6962 root and head are the manifest's"


# --- grammar ----------------------------------------------------------------------------------------------


def _grammar_each(job: JobSoFar) -> None:  # noqa: PLR0912 - one branch per rule reads as the list it is.
    kind = job.kind
    if (job.seq == 0) is not (kind == "job.created"):
        raise Broken(f"{kind} at {job.seq}; job.created is the first record, and no other", job.seq)
    if job.end:
        raise Broken(f"{kind} after job.end, which must be the last record", job.seq)
    if kind in (*_OWNERS_RECORDS, "ckpt.invalid") and job.spec is None:
        raise Broken(f"{kind} before job.start", job.seq)
    if job.paused and kind in _WORKERS_RECORDS:
        raise Broken(f"{kind} in a job that was paused and not resumed since", job.seq)
    if job.version not in job.forms:
        # An older form says less; a job must neither fall back to it nor begin with it.
        raise Broken(f"{job.record['t']} in a job whose job.created has version {job.begun_in}", job.seq)
    if kind == "job.created":
        if job.body["spec_sha256"] != digest_of(job.body["spec"]):
            raise Broken("spec_sha256 is not the digest of spec", job.seq)
    elif kind == "job.start":
        if job.spec is not None:
            raise Broken("a second job.start; what goes on is a job.resume", job.seq)
        if job.body["from_step"] or job.body["checkpoint_sha256"]:
            raise Broken("job.start begins from a checkpoint; only job.resume may", job.seq)
        asked, resolved = ensured(job.created)["spec"]["safety"], job.body["spec"]["safety"]
        other = _contradiction("safety", asked, resolved) or _contradicted_null(asked, resolved)
        if other:
            raise Broken(f"job.start contradicts what job.created asked for: {other}", job.seq)
    elif kind == "job.resume":
        if digest_of(job.body["spec"]) != digest_of(job.spec):
            raise Broken("the spec of job.resume is not that of job.start", job.seq)
    elif kind == "risk.table":
        if job.table is not None:
            raise Broken("a second risk.table", job.seq)
    elif kind in ("anchors", "alignment"):
        if getattr(job, kind) is not None:
            raise Broken(f"a second {kind}", job.seq)
        if job.table is None or job.steps or job.superseded:
            raise Broken(f"{kind} belongs between the risk.table and the first step", job.seq)
    elif kind in ("live", "step"):
        if job.table is None:
            raise Broken(f"a {kind} before the risk.table that says how risky its rows are", job.seq)
        if kind == "step" and not job.body["rows"] and not job.body["alignment_rows"]:
            raise Broken("a step without a row", job.seq)
    elif kind == "ckpt" and job.body["sha256"] != digest_of(job.body["files"]):
        raise Broken("sha256 is not the digest of files", job.seq)


_OWNERS_RECORDS = (
    "job.resume",
    "risk.table",
    "anchors",
    "alignment",
    "step",
    "monitor",
    "live",
    "ckpt",
    "eval",
    "gate.start",
    "gate",
    "adapter.published",
)
_WORKERS_RECORDS = ("job.start", "ckpt.invalid", *_OWNERS_RECORDS)
_NULL_IS_NONE = ("anchors", "monitor")
"""Fields of `safety` of which null says "none of it"; of all others it leaves the choice open."""


def _contradicted_null(asked: Leaf, resolved: Leaf) -> str | None:
    for name in _NULL_IS_NONE:
        if asked.get(name, 0) is None and resolved.get(name) is not None:
            return f"safety.{name} was null, became {resolved[name]!r}"
    return None


def _contradiction(path: str, asked: object, resolved: object) -> str | None:
    """Return where `resolved` differs from what was asked; null and "auto" leave the choice open."""
    if asked is None or asked == "auto":
        return None
    if isinstance(asked, dict) and isinstance(resolved, dict):
        parts = (_contradiction(f"{path}.{key}", item, resolved.get(key)) for key, item in asked.items())
        return next(filter(None, parts), None)
    return None if is_same(asked, resolved) else f"{path} was {asked!r}, became {resolved!r}"


def _grammar_at_end(job: JobSoFar) -> str:
    if job.spec is None:
        return "job.created first; the job was never started"
    return "the records come in an order that a job can have"


# --- attempts ---------------------------------------------------------------------------------------------


def _attempts_each(job: JobSoFar) -> None:
    header = (job.record["attempt"], job.record["epoch"])
    attempt, epoch = header
    if job.kind == "job.created" and attempt:
        raise Broken(f"job.created has attempt {attempt}; the first attempt begins with job.start", job.seq)
    if epoch < job.epoch:
        raise Broken(f"epoch falls from {job.epoch} to {epoch}: a fenced worker's record got in", job.seq)
    if attempt < job.attempt:
        raise Broken(f"attempt falls from {job.attempt} to {attempt}", job.seq)
    if job.kind in ("job.start", "job.resume"):
        if attempt <= max(0, job.owner[0]) or epoch <= job.owner[1]:
            raise Broken(
                f"attempt {attempt}, epoch {epoch} is no new attempt after attempt {job.owner[0]},"
                f" epoch {job.owner[1]}",
                job.seq,
            )
    elif job.kind == "ckpt.invalid" and (attempt <= job.owner[0] or epoch <= job.owner[1]):
        raise Broken(
            "a checkpoint is found invalid before an attempt goes on from another, not within it", job.seq
        )
    elif job.kind in _OWNERS_RECORDS and header != job.owner:
        raise Broken(
            f"written under attempt {attempt}, epoch {epoch}; the lease was held under attempt"
            f" {job.owner[0]}, epoch {job.owner[1]}",
            job.seq,
        )
    _check_step_order(job)


def _check_step_order(job: JobSoFar) -> None:
    if job.is_pruned:
        # Which step was the last one is not on record any more.
        return
    last = len(job.steps)
    if job.kind == "step" and job.body["step"] != last + 1:
        raise Broken(f"step {job.body['step']} follows step {last}", job.seq)
    if job.kind == "live" and job.body["step"] != last + 1:
        raise Broken(f"live scores for step {job.body['step']}, but the next one is {last + 1}", job.seq)
    if job.kind in ("ckpt", "adapter.published", "monitor") and job.body["step"] > last:
        raise Broken(f"{job.kind} of step {job.body['step']}, but step {last} is the last", job.seq)
    if job.kind == "ckpt.invalid" and (job.body["step"], job.body["sha256"]) not in job.checkpoints:
        raise Broken(f"no standing record names the invalid checkpoint of step {job.body['step']}", job.seq)
    if job.kind == "job.resume":
        step, digest = job.body["from_step"], job.body["checkpoint_sha256"]
        if step > last:
            raise Broken(f"resumes from step {step}, but step {last} is the last", job.seq)
        if (step > 0 or digest is not None) and (step, digest) not in job.checkpoints:
            raise Broken(
                f"resumes step {step} from a checkpoint that no standing record of that step names", job.seq
            )
        if (step, digest) in job.invalid:
            raise Broken(f"resumes from the checkpoint of step {step}, which it has found invalid", job.seq)
        if job.version > 1 and step < job.newest_checkpoint:
            raise Broken(
                f"resumes from step {step}, but the checkpoint of step {job.newest_checkpoint} stands, and no record says"
                " what became of it",
                job.seq,
            )


def _attempts_at_end(job: JobSoFar) -> str:
    if job.spec is None:
        raise NotChecked("the job was never started")
    steps = f"steps 1 to {len(job.steps)} each count once" if job.steps else "no step yet"
    found = f"{steps}; {counted(job.resumes, 'resume')}, {counted(job.superseded, 'superseded step')}"
    if job.stepped_back:
        found += (
            f"; from an older checkpoint than the newest, and no record says why: {_list(job.stepped_back)}"
        )
    if job.elsewhere:
        found += (
            f"; in another environment than the start's, so that last bits may differ: {_list(job.elsewhere)}"
        )
    return found


def _list(seqs: list[int]) -> str:
    more = f" and {len(seqs) - 5} more" if len(seqs) > 5 else ""
    return f"the resume at {', '.join(map(str, seqs[:5]))}{more}"


def _short(digest: str) -> str:
    return f"{digest[:12]}…"


EACH: dict[str, Callable[[JobSoFar], None]] = {
    "sequence": _sequence_each,
    "chain": _chain_each,
    "grammar": _grammar_each,
    "attempts": _attempts_each,
}
AT_END: dict[str, Callable[[JobSoFar], str]] = {
    "records": _records_at_end,
    "sequence": _sequence_at_end,
    "chain": _chain_at_end,
    "root": _root_at_end,
    "grammar": _grammar_at_end,
    "attempts": _attempts_at_end,
}
