"""Evidence bundles for the offline verifier."""

import io

from sqlalchemy.orm import Session

from app.audit.repository import iterate_leaves, load_risk_table
from app.domain.bundle import LogProof, write_bundle
from app.domain.installation_log import format_head_line
from app.domain.merkle import inclusion_proofs, leaf_hash
from app.notary import repository as notary


def build_evidence(session: Session, job_id: str) -> bytes:
    """Return the evidence bundle of a job as it stands now, signed where the notary has signed a head of it."""
    entries = load_risk_table(session, job_id)
    buffer = io.BytesIO()
    write_bundle(
        buffer,
        job=job_id,
        leaves=iterate_leaves(session, job_id),
        risk_table=entries or None,
        log=prove_heads(session, job_id),
    )
    return buffer.getvalue()


def prove_heads(session: Session, job_id: str) -> LogProof | None:
    """Return what ties a job's ledger to the newest checkpoint; None where no head of it is under one."""
    log = notary.get_log(session)
    checkpoint = notary.get_checkpoint(session, log.number) if log else None
    if log is None or checkpoint is None:
        return None
    heads = [head for head in notary.list_heads(session, log.number, job_id) if head.index < checkpoint.size]
    if not heads:
        return None
    wanted = {head.index for head in heads}
    hashes, leaves = [], {}
    for index, leaf in enumerate(notary.iterate_log(session, log.number, end=checkpoint.size)):
        hashes.append(leaf_hash(leaf))
        if index in wanted:
            leaves[index] = leaf
    proofs = inclusion_proofs(hashes, sorted(wanted))
    lines = [
        format_head_line(index, leaves[index], proof)
        for index, proof in zip(sorted(wanted), proofs, strict=True)
    ]
    return LogProof(checkpoint.note.encode(), lines)
