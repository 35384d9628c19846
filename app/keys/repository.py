"""Every query of keys."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app.domain.scopes import Role
from app.models.tenancy import ApiKey
from app.pages import unknown_cursor


def find_key(session: Session, digest: str) -> ApiKey | None:
    """Return the key with this digest, whatever became of it."""
    return session.scalars(select(ApiKey).where(ApiKey.key_digest == digest)).one_or_none()


class KeyRow(NamedTuple):
    """What decides about a key. It is read for every request, and so without making an object of the row."""

    id: str
    project_id: str
    key_digest: str
    role: str
    scopes: list[Any] | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


_TABLE = ApiKey.metadata.tables[ApiKey.__tablename__]
_BY_DIGEST = select(*(_TABLE.c[name] for name in KeyRow._fields)).where(
    _TABLE.c.key_digest.in_(bindparam("digests", expanding=True))
)


def find_keys(session: Session, digests: Iterable[str]) -> list[KeyRow]:
    """Return what is known of the keys with these digests, whatever became of them."""
    return [KeyRow(*row) for row in session.execute(_BY_DIGEST, {"digests": list(digests)})]


def list_line(session: Session, key_id: str) -> set[str]:
    """Return a key with those that it was rotated from and to: they are one and the same to whoever counts people."""
    line = {key_id}
    while True:
        later = select(ApiKey.replaced_by).where(ApiKey.id.in_(line), ApiKey.replaced_by.is_not(None))
        earlier = select(ApiKey.id).where(ApiKey.replaced_by.in_(line))
        found = {each for query in (later, earlier) for each in session.scalars(query) if each is not None}
        if found <= line:
            return line
        line |= found


def get_key(session: Session, project_id: str | None, key_id: str, *, lock: bool = False) -> ApiKey | None:
    """Return a key of the project, or of any where that is None; with `lock`, nobody changes it meanwhile."""
    query = select(ApiKey).where(ApiKey.id == key_id)
    if project_id is not None:
        query = query.where(ApiKey.project_id == project_id)
    if lock:
        query = query.with_for_update(key_share=True)
    return session.scalars(query.execution_options(populate_existing=True)).one_or_none()


def list_keys(
    session: Session, project_id: str | None, *, after: str | None = None, limit: int | None = None
) -> Sequence[ApiKey]:
    """Return up to limit + 1 keys of the project, or of all where that is None, newest first."""
    query = select(ApiKey)
    if project_id is not None:
        query = query.where(ApiKey.project_id == project_id)
    if after is not None:
        cursor = get_key(session, project_id, after)
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(tuple_(ApiKey.created_at, ApiKey.id) < (cursor.created_at, cursor.id))
    query = query.order_by(ApiKey.created_at.desc(), ApiKey.id.desc())
    return session.scalars(query if limit is None else query.limit(limit + 1)).all()


def has_live_operator(session: Session, now: datetime) -> bool:
    """Say whether some key opens everything."""
    query = select(ApiKey.id).where(
        ApiKey.role == Role.OPERATOR,
        ApiKey.scopes.is_(None),
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now),
    )
    return session.scalars(query.limit(1)).one_or_none() is not None


def list_usable_keys(session: Session, key_ids: Iterable[str], now: datetime) -> set[str]:
    """Return those of these keys that still open something, for who checked them earlier and goes on."""
    return set(
        session.scalars(
            select(ApiKey.id).where(
                ApiKey.id.in_(key_ids),
                ApiKey.revoked_at.is_(None),
                or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now),
            )
        )
    )


def note_use(session: Session, key_id: str, now: datetime) -> None:
    """Remember when a key was used."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(last_used_at=now))
