"""From a bearer key to the caller."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from app.database import Database, read_only, unit_of_work
from app.domain.scopes import SCOPES_OF, Role, Scope
from app.errors import NotAuthenticated, PermissionDenied
from app.keys.repository import KeyRow, find_keys, note_use
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


def read_digest(authorization: str | None) -> str:
    """Return the digest of the key in an Authorization header. Raises NotAuthenticated."""
    scheme, _, key = (authorization or "").partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not key:
        raise NotAuthenticated(
            "no API key was given; send the header «Authorization: Bearer KEY» (the openai client: api_key=...)"
        )
    if is_damaged(key):
        raise NotAuthenticated("this API key is damaged: its checksum is wrong; copy it again, whole")
    return digest_secret(key)


class Known(NamedTuple):
    """Who is behind a key that opens something."""

    caller: Caller
    use_is_due: bool
    """Whether it is time to write down that the key was used."""


Found = Known | NotAuthenticated
"""What became of a key: who may come in by it, or why nobody may."""


def find_callers(database: Database, digests: Collection[str]) -> dict[str, Found]:
    """Return what became of the keys with these digests; those that are not known are left out.

    Nothing is remembered from one call to the next; `KnownCallers` keeps them for a moment.
    """
    with read_only(database) as session:
        keys = find_keys(session, digests)
    now = utc_now()
    return {key.key_digest: _look_at(key, now) for key in keys}


def _look_at(key: KeyRow, now: datetime) -> Found:
    if key.revoked_at is not None:
        return NotAuthenticated("this API key was revoked; ask for a new one")
    if key.expires_at is not None and key.expires_at <= now:
        return NotAuthenticated(
            f"this API key expired on {key.expires_at:%Y-%m-%d %H:%M} UTC; ask for a new one"
        )
    caller = Caller(
        project_id=key.project_id,
        key_id=key.id,
        role=Role(key.role),
        scopes=scopes_of(key),
        expires_at=key.expires_at,
    )
    return Known(caller, key.last_used_at is None or key.last_used_at < now - USE_IS_NOTED_EVERY)


def admit(found: Found | None) -> Known:
    """Return who comes in. Raises NotAuthenticated where nobody does, because the key is not known or has ended."""
    if found is None:
        raise NotAuthenticated("this API key is not known; use the one that `tether serve` showed")
    if isinstance(found, NotAuthenticated):
        raise found
    return found


def authenticate(database: Database, authorization: str | None) -> Caller:
    """Return the caller behind an Authorization header. Raises NotAuthenticated."""
    digest = read_digest(authorization)
    caller, use_is_due = admit(find_callers(database, [digest]).get(digest))
    if use_is_due:
        write_use_down(database, caller.key_id)
    return caller


def require(caller: Caller, scope: Scope) -> None:
    """Raise PermissionDenied where the caller's key does not have this scope."""
    if scope not in caller.scopes:
        roles = " or ".join(repr(role.value) for role, scopes in SCOPES_OF.items() if scope in scopes)
        raise PermissionDenied(
            f"this needs a key with the scope {scope.value!r}, and this one, of the role {caller.role.value!r}, does"
            f" not have it; the role {roles} has it: ask the operator of this installation"
        )


def write_use_down(database: Database, key_id: str) -> None:
    """Remember that a key was used now."""
    try:
        with unit_of_work(database) as session:
            note_use(session, key_id, utc_now())
    except SQLAlchemyError as error:
        log.warning("the use of a key could not be noted (%s)", type(error).__name__)
