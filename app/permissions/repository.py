"""Every query of checkpoint permissions."""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from app.models.base import new_id, utc_now
from app.models.permission import CheckpointPermission
from app.models.tenancy import Project
from app.pages import unknown_cursor


def lock_project(session: Session, project_id: str) -> bool:
    """Say whether there is such a project; nobody else gives it a permission before this transaction ends."""
    query = select(Project.id).where(Project.id == project_id).with_for_update(key_share=True)
    return session.scalars(query).one_or_none() is not None


def find_permission(session: Session, model: str, project_id: str) -> CheckpointPermission | None:
    """Return the permission of a project for a model."""
    return session.scalars(
        select(CheckpointPermission).where(
            CheckpointPermission.model == model, CheckpointPermission.project_id == project_id
        )
    ).one_or_none()


def get_permission(session: Session, model: str, permission_id: str) -> CheckpointPermission | None:
    """Return a permission for a model."""
    return session.scalars(
        select(CheckpointPermission).where(
            CheckpointPermission.id == permission_id, CheckpointPermission.model == model
        )
    ).one_or_none()


def add_permission(session: Session, model: str, project_id: str) -> CheckpointPermission:
    """Insert a permission."""
    permission = CheckpointPermission(
        id=new_id("cp_"), model=model, project_id=project_id, created_at=utc_now()
    )
    session.add(permission)
    session.flush()
    return permission


def list_permissions(
    session: Session,
    model: str,
    *,
    project_id: str | None,
    after: str | None,
    limit: int,
    order: Literal["ascending", "descending"],
) -> Sequence[CheckpointPermission]:
    """Return up to limit + 1 permissions for a model by time of creation."""
    query = select(CheckpointPermission).where(CheckpointPermission.model == model)
    if project_id is not None:
        query = query.where(CheckpointPermission.project_id == project_id)
    key = tuple_(CheckpointPermission.created_at, CheckpointPermission.id)
    if after is not None:
        cursor = session.execute(
            select(CheckpointPermission.created_at, CheckpointPermission.id).where(
                CheckpointPermission.id == after, CheckpointPermission.model == model
            )
        ).one_or_none()
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(key > tuple(cursor) if order == "ascending" else key < tuple(cursor))
    columns = (CheckpointPermission.created_at, CheckpointPermission.id)
    query = query.order_by(*(each if order == "ascending" else each.desc() for each in columns))
    return session.scalars(query.limit(limit + 1)).all()
