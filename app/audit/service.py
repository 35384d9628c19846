"""Evidence bundles for the offline verifier."""

import io
from collections.abc import Mapping

from sqlalchemy.orm import Session

from app.audit.repository import iterate_leaves, load_risk_table
from app.domain.bundle import LogProof, write_bundle
from app.domain.installation_log import format_head_line
from app.domain.merkle import inclusion_proofs, leaf_hash
from app.domain.retention import format_pruning_line
from app.errors import Conflict
from app.models.installation_log import LogEvent
from app.models.retention import PrunedJob
from app.notary import repository as notary
from app.retention.repository import get_newest_done


def build_evidence(session: Session, job_id: str, documents: Mapping[str, bytes] | None = None) -> bytes:
    """Return the evidence bundle of a job as it stands now, signed where the notary has signed a head of it.

    `documents` are what `app.evidence.documents` makes of the job.

    Raises Conflict where records were pruned and the log that is written now does not say so.
    """
    entries = load_risk_table(session, job_id)
    pruned = get_newest_done(session, job_id)
    log = prove_heads(session, job_id, pruned)
    if pruned is not None and (log is None or log.pruning is None):
        raise Conflict(
            f"records of {job_id} were pruned, and no signed checkpoint of the log that is written now says so, because it was"
            " forked since; have the operator run: tether ledger prune --yes",
            code="pruning_not_signed",
        )
    buffer = io.BytesIO()
    write_bundle(
        buffer,
        job=job_id,
        leaves=iterate_leaves(session, job_id),
        risk_table=entries or None,
        log=log,
        documents=documents,
    )
    return buffer.getvalue()


def prove_heads(session: Session, job_id: str, pruned: PrunedJob | None = None) -> LogProof | None:
    """Return what ties a job's ledger to the newest checkpoint; None where no head of it is under one.

    With `pruned` it has what the log says of that pruning, where it says anything.
    """
    log = notary.get_log(session)
    checkpoint = notary.get_checkpoint(session, log.number) if log else None
    if log is None or checkpoint is None:
        return None
    heads = [head for head in notary.list_heads(session, log.number, job_id) if head.index < checkpoint.size]
    if not heads:
        return None
    wanted = {head.index for head in heads}
    event = session.get_one(LogEvent, pruned.event).leaf if pruned else None
    hashes, leaves, told_at = [], {}, None
    for index, leaf in enumerate(notary.iterate_log(session, log.number, end=checkpoint.size)):
        hashes.append(leaf_hash(leaf))
        if index in wanted:
            leaves[index] = leaf
        elif leaf == event:
            told_at = index
    proofs = inclusion_proofs(hashes, sorted(wanted))
    lines = [
        format_head_line(index, leaves[index], proof)
        for index, proof in zip(sorted(wanted), proofs, strict=True)
    ]
    if pruned is None or event is None or told_at is None:
        return LogProof(checkpoint.note.encode(), lines)
    line = format_pruning_line(told_at, event, inclusion_proofs(hashes, [told_at])[0], pruned.pruning)
    return LogProof(checkpoint.note.encode(), lines, line)
