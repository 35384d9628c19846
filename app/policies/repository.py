"""Every query of stored safety policies. They belong to the installation, not to a project."""

from collections.abc import Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from app.models.policy import Policy
from app.models.tenancy import Project
from app.pages import unknown_cursor


def get_policy(session: Session, policy_id: str) -> Policy | None:
    """Return a stored policy."""
    return session.get(Policy, policy_id)


def find_version(session: Session, name: str, version: int) -> Policy | None:
    """Return the policy of this name and version."""
    return session.scalars(select(Policy).where(Policy.name == name, Policy.version == version)).one_or_none()


def get_policy_of(session: Session, project_id: str) -> Policy | None:
    """Return the policy that a project was given; None where the installation's holds."""
    return session.scalars(
        select(Policy).join(Project, Project.policy_id == Policy.id).where(Project.id == project_id)
    ).one_or_none()


def list_policies(session: Session, *, after: str | None, limit: int) -> Sequence[Policy]:
    """Return up to limit + 1 policies, newest first."""
    query = select(Policy)
    if after is not None:
        cursor = get_policy(session, after)
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(tuple_(Policy.created_at, Policy.id) < (cursor.created_at, cursor.id))
    return session.scalars(query.order_by(Policy.created_at.desc(), Policy.id.desc()).limit(limit + 1)).all()
