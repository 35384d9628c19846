"""The documents of an evidence bundle beside its records, each made of the same facts."""

import json
from typing import Any

from sqlalchemy.orm import Session

from app.domain.bom import build_bom
from app.domain.bundle import POLICY, PROVENANCE
from app.domain.job import RECORDED
from app.evidence.card import render_card
from app.evidence.facts import gather_facts
from app.models.attestation import Attestation
from app.models.job import Job
from app.settings import Settings


def build_documents(session: Session, settings: Settings, job: Job) -> dict[str, bytes]:
    """Return the documents about a job by their names in its bundle; none before its record has its last leaf."""
    if job.work.state not in RECORDED:
        return {}
    facts = gather_facts(session, settings, job)
    records = facts["records"]
    start = records["start"]
    documents = {
        "bom.cdx.json": _json(build_bom(facts)),
        "compute.json": _json(facts["compute"]),
        "critics.json": _json({"critic": records["created"]["critic"], "fitted": facts["critics"]}),
        "environment.json": _json(
            {
                "environment": start and start["environment"],
                "device": start and start["device"],
                "starts": records["starts"],
            }
        ),
        "evaluations.json": _json(
            {
                "recorded": records["evaluations"],
                "later": facts["evaluations"],
                "gates": records["gates"],
                "checkpoints": facts["checkpoints"],
            }
        ),
        "lineage.json": _json(facts["lineage"]),
        "model_card.html": render_card(facts).encode(),
    }
    if facts["policy"]["text"] is not None:
        documents[POLICY] = facts["policy"]["text"].encode()
    attestation = session.get(Attestation, job.id)
    if attestation is not None:
        documents[PROVENANCE] = attestation.envelope
    return documents


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
