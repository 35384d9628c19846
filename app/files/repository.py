"""Every query of files, scoped by project."""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from app.models.file import File
from app.pages import unknown_cursor


def get_file(session: Session, project_id: str, file_id: str) -> File | None:
    """Return a file of the project unless it was deleted."""
    return session.scalars(
        select(File).where(File.id == file_id, File.project_id == project_id, File.deleted_at.is_(None))
    ).one_or_none()


def list_files(
    session: Session,
    project_id: str,
    *,
    purpose: str | None,
    after: str | None,
    limit: int,
    order: Literal["asc", "desc"],
) -> Sequence[File]:
    """Return up to limit + 1 files by time of creation."""
    query = select(File).where(File.project_id == project_id, File.deleted_at.is_(None))
    if purpose is not None:
        query = query.where(File.purpose == purpose)
    key = tuple_(File.created_at, File.id)
    if after is not None:
        cursor = session.execute(
            select(File.created_at, File.id).where(File.id == after, File.project_id == project_id)
        ).one_or_none()
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(key > tuple(cursor) if order == "asc" else key < tuple(cursor))
    if order == "asc":
        query = query.order_by(File.created_at, File.id)
    else:
        query = query.order_by(File.created_at.desc(), File.id.desc())
    return session.scalars(query.limit(limit + 1)).all()


def is_in_use(session: Session, sha256: str) -> bool:
    """Say whether any file that was not deleted still has these bytes."""
    return (
        session.scalars(
            select(File.id).where(File.sha256 == sha256, File.deleted_at.is_(None)).limit(1)
        ).one_or_none()
        is not None
    )
