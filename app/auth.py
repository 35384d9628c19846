"""From a bearer key to the caller."""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.exc import SQLAlchemyError

from app.database import Database, read_only, unit_of_work
from app.domain.scopes import SCOPES_OF, Role, Scope
from app.errors import NotAuthenticated, PermissionDenied
from app.keys.repository import find_key, note_use
from app.keys.secret import digest_secret, is_damaged
from app.keys.service import scopes_of
from app.models.base import utc_now

log = logging.getLogger(__name__)

USE_IS_NOTED_EVERY = timedelta(minutes=10)
"""Writing down every use would make a write of each read."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and for which project. Every query is scoped by `project_id`."""

    project_id: str
    key_id: str
    role: Role = Role.MEMBER
    scopes: frozenset[Scope] = SCOPES_OF[Role.MEMBER]
    expires_at: datetime | None = None


def authenticate(database: Database, authorization: str | None) -> Caller:
    """Return the caller behind an Authorization header. Raises NotAuthenticated.

    Nothing is remembered from one call to the next, so that a revoked key ends with the request that revokes it.
    """
    scheme, _, key = (authorization or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise NotAuthenticated(
            "no API key was given; send the header «Authorization: Bearer KEY» (the openai client: api_key=...)"
        )
    if is_damaged(key):
        raise NotAuthenticated("this API key is damaged: its checksum is wrong; copy it again, whole")
    with read_only(database) as session:
        found = find_key(session, digest_secret(key))
    if found is None:
        raise NotAuthenticated("this API key is not known; use the one that `tether serve` showed")
    now = utc_now()
    if found.revoked_at is not None:
        raise NotAuthenticated("this API key was revoked; ask for a new one")
    if found.expires_at is not None and found.expires_at <= now:
        raise NotAuthenticated(
            f"this API key expired on {found.expires_at:%Y-%m-%d %H:%M} UTC; ask for a new one"
        )
    if found.last_used_at is None or found.last_used_at < now - USE_IS_NOTED_EVERY:
        _note_use(database, found.id, now)
    return Caller(
        project_id=found.project_id,
        key_id=found.id,
        role=Role(found.role),
        scopes=scopes_of(found),
        expires_at=found.expires_at,
    )


def require(caller: Caller, scope: Scope) -> None:
    """Raise PermissionDenied where the caller's key does not have this scope."""
    if scope not in caller.scopes:
        roles = " or ".join(repr(role.value) for role, scopes in SCOPES_OF.items() if scope in scopes)
        raise PermissionDenied(
            f"this needs a key with the scope {scope.value!r}, and this one, of the role {caller.role.value!r}, does"
            f" not have it; the role {roles} has it: ask the operator of this installation"
        )


def _note_use(database: Database, key_id: str, now: datetime) -> None:
    try:
        with unit_of_work(database) as session:
            note_use(session, key_id, now)
    except SQLAlchemyError as error:
        log.warning("the use of a key could not be noted (%s)", type(error).__name__)
