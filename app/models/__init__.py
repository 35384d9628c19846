"""The tables. Importing any of them brings all, because foreign keys need to find each other."""

from app.models import (
    base_model,
    file,
    installation_log,
    job,
    permission,
    reply,
    report,
    safety_set,
    tenancy,
    upload,
    webhook,
    work,
)

__all__ = [
    "base_model",
    "file",
    "installation_log",
    "job",
    "permission",
    "reply",
    "report",
    "safety_set",
    "tenancy",
    "upload",
    "webhook",
    "work",
]
