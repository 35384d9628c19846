"""Every query of registered safety sets."""

from collections.abc import Collection, Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from app.models.base_model import BaseModel
from app.models.safety_set import SafetySet
from app.pages import unknown_cursor


def get_set(session: Session, set_id: str) -> SafetySet | None:
    """Return a registered set."""
    return session.get(SafetySet, set_id)


def get_newest_set(session: Session, base: BaseModel, kind: str) -> SafetySet | None:
    """Return the newest set of a kind (anchors, alignment, harmful) that was registered for a base model."""
    return session.scalars(
        select(SafetySet)
        .where(SafetySet.base_model == base.name, SafetySet.kind == kind)
        .order_by(SafetySet.created_at.desc(), SafetySet.id.desc())
        .limit(1)
    ).one_or_none()


def list_sets(
    session: Session, *, kinds: Collection[str], after: str | None = None, limit: int | None = None
) -> Sequence[SafetySet]:
    """Return up to limit + 1 sets of some kinds, newest first; all of them where there is no limit."""
    query = (
        select(SafetySet)
        .where(SafetySet.kind.in_(kinds))
        .order_by(SafetySet.created_at.desc(), SafetySet.id.desc())
    )
    if after is not None:
        cursor = get_set(session, after)
        if cursor is None:
            raise unknown_cursor(after)
        key = tuple_(SafetySet.created_at, SafetySet.id)
        query = query.where(key < (cursor.created_at, cursor.id))
    if limit is not None:
        query = query.limit(limit + 1)
    return session.scalars(query).all()
