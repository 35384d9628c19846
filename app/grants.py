"""The rights of each process on PostgreSQL, as SQL: what it needs, and none to change what is on record.

Like the triggers they stop accidents and a process that was taken over, and not whoever owns the database.
"""

import re
from collections.abc import Iterator

from app.errors import InvalidRequest
from app.models.base import Base

API, WORKER, NOTARY = "api", "worker", "notary"
LOG = frozenset({"installation_logs", "log_leaves", "log_heads", "log_checkpoints", "attestations"})
"""What the notary alone writes."""
APPENDED = frozenset({"ledger_leaves", "log_events"})
"""What API and workers add to, and nobody changes."""
OF_THE_OWNER = frozenset({"legal_holds", "pruned_jobs", "alembic_version"})
"""What the owner's commands alone write."""
ADDED_BY = {"risk_rows": WORKER, "job_decisions": API}
"""What one part adds to, the other reads, and none changes; the owner alone prunes it."""
OF_NO_PROCESS = frozenset({"ledger_unlocks"})
"""Pruning is a command of the owner's."""
OF_THE_API = frozenset({"api_keys", "replies", "policies", "weight_downloads", "noted_digests", "anchors"})
"""What no worker has to do with; keys and replies it may not even read."""
HIDDEN = frozenset({"api_keys", "replies"})
READ_BY_NOTARY = frozenset({"work", "jobs", "ledger_leaves", "log_events", "alembic_version", *LOG})


def format_grants(prefix: str, schema: str) -> str:
    """Return the SQL that makes the roles, without a login, and gives them their rights; again is harmless.

    Raises InvalidRequest for a prefix or schema that would have to be quoted.
    """
    for name in (prefix, schema):
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,54}", name):
            raise InvalidRequest(f"{name!r} cannot name it; small letters, digits and _ can, a letter first")
    return "\n".join(_statements(prefix, schema)) + "\n"


def _statements(prefix: str, schema: str) -> Iterator[str]:
    for part in (API, WORKER, NOTARY):
        role = f"{prefix}_{part}"
        yield (f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;")
        yield f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {role};"
        yield f"GRANT USAGE ON SCHEMA {schema} TO {role};"
        yield f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role};"
        for table, rights in rights_of(part).items():
            yield f"GRANT {rights} ON {schema}.{table} TO {role};"


def rights_of(part: str) -> dict[str, str]:
    """Return what a process may do with each table that it may do anything with."""
    tables = [*sorted(Base.metadata.tables), "alembic_version"]
    found = ((table, _rights(part, table)) for table in tables)
    return {table: rights for table, rights in found if rights is not None}


def _rights(part: str, table: str) -> str | None:
    if table in OF_NO_PROCESS:
        return None
    if part == NOTARY:
        return _rights_of_notary(table)
    if part == WORKER and table in HIDDEN:
        return None
    if table in LOG | OF_THE_OWNER or (part == WORKER and table in OF_THE_API):
        return "SELECT"
    if table in ADDED_BY:
        return "SELECT, INSERT" if ADDED_BY[table] == part else "SELECT"
    if table in APPENDED:
        return "SELECT, INSERT"
    return "SELECT, INSERT, UPDATE, DELETE"


def _rights_of_notary(table: str) -> str | None:
    if table in LOG:
        return "SELECT, INSERT"
    if table == "log_events":
        return "SELECT, INSERT, UPDATE (log)"
    if table in ("workers", "notary_refusals"):
        return "SELECT, INSERT, UPDATE, DELETE"
    return "SELECT" if table in READ_BY_NOTARY else None
