"""Evidence bundles for the offline verifier."""

import io

from sqlalchemy.orm import Session

from app.audit.repository import iterate_leaves, load_risk_table
from app.domain.bundle import write_bundle


def build_evidence(session: Session, job_id: str) -> bytes:
    """Return the evidence bundle of a job as it stands now."""
    entries = load_risk_table(session, job_id)
    buffer = io.BytesIO()
    write_bundle(buffer, job=job_id, leaves=iterate_leaves(session, job_id), risk_table=entries or None)
    return buffer.getvalue()
