"""Bearer keys: made, stored as their digest, looked up."""

import hashlib
import secrets

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models.base import new_id, utc_now
from app.models.tenancy import ApiKey, Project

DEFAULT_PROJECT = "proj_default"
MEMBER = "member"
OPERATOR = "operator"
"""Roles of keys. An operator's may also register what the safety of every project rests on."""


def make_key() -> str:
    """Return a new secret with about 190 bits of randomness."""
    return "tether_" + secrets.token_urlsafe(24)


def digest_key(key: str) -> str:
    """Return what is stored of a key. A made key is random enough that a slow hash would add nothing."""
    return hashlib.sha256(key.encode("utf-8")).hexdigest()


def find_key(session: Session, key: str) -> ApiKey | None:
    """Return the row of a key."""
    return session.scalars(select(ApiKey).where(ApiKey.key_digest == digest_key(key))).one_or_none()


def ensure_admin_key(session: Session, key: str | None) -> str | None:
    """Make sure that the first project has a key; return the key if it was made just now.

    A given key is added where it is not known yet. Without one, a key is made if there is none at all.
    """
    if session.get(Project, DEFAULT_PROJECT) is None:
        session.add(Project(id=DEFAULT_PROJECT, name="Default", created_at=utc_now()))
        session.flush()
    if key is None:
        if session.scalars(select(ApiKey.id).limit(1)).one_or_none() is not None:
            return None
        made = make_key()
        _add_key(session, made)
        return made
    if find_key(session, key) is None:
        _add_key(session, key)
    return None


def _add_key(session: Session, key: str) -> None:
    session.add(
        ApiKey(
            id=new_id("key_"),
            project_id=DEFAULT_PROJECT,
            name="administrator",
            key_digest=digest_key(key),
            role=OPERATOR,
            created_at=utc_now(),
        )
    )
