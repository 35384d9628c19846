"""Every query of projects."""

from collections.abc import Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from app.models.tenancy import Project
from app.pages import unknown_cursor

NOT_THE_KEY = {"key_share": True}
"""A lock that lets others insert rows which refer to the locked one."""


def get_project(session: Session, project_id: str, *, lock: bool = False) -> Project | None:
    """Return a project. With `lock`, whoever else wants it locked waits until this transaction ends.

    On SQLite every transaction that writes has the whole database to itself, and no lock is needed.
    """
    return session.get(
        Project, project_id, populate_existing=True, with_for_update=NOT_THE_KEY if lock else None
    )


def list_projects(
    session: Session, *, after: str | None = None, limit: int | None = None
) -> Sequence[Project]:
    """Return up to limit + 1 projects, newest first."""
    query = select(Project)
    if after is not None:
        cursor = session.get(Project, after)
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(tuple_(Project.created_at, Project.id) < (cursor.created_at, cursor.id))
    query = query.order_by(Project.created_at.desc(), Project.id.desc())
    return session.scalars(query if limit is None else query.limit(limit + 1)).all()
