"""The tables. Importing any of them brings all, because foreign keys need to find each other."""

from app.models import (
    attestation,
    base_model,
    evaluation,
    file,
    installation_log,
    job,
    permission,
    policy,
    reply,
    report,
    retention,
    safety_set,
    tenancy,
    upload,
    webhook,
    work,
)

__all__ = [
    "attestation",
    "base_model",
    "evaluation",
    "file",
    "installation_log",
    "job",
    "permission",
    "policy",
    "reply",
    "report",
    "retention",
    "safety_set",
    "tenancy",
    "upload",
    "webhook",
    "work",
]
