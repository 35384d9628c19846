"""Every query of stored safety policies. They belong to the installation, not to a project."""

from collections.abc import Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from app.domain.evaluation_spec import BUILTIN_SUITES
from app.domain.safety_policy import SafetyPolicy, parse_policy
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


def read_policy(stored: Policy) -> SafetyPolicy:
    """Return what a stored policy says."""
    return parse_policy(stored.content, "toml" if stored.written_in == "toml" else "json")


def list_suites(session: Session) -> dict[str, Policy]:
    """Return the files of prompts that gates of stored policies evaluate with, each with a policy that names it.

    Operators write policies by hand, so there are few of them.
    """
    suites = {}
    for stored in session.scalars(select(Policy).order_by(Policy.created_at, Policy.id)):
        gate = read_policy(stored).gate
        if gate is not None and gate.evaluation is not None and gate.evaluation.suite not in BUILTIN_SUITES:
            suites[gate.evaluation.suite] = stored
    return suites


def find_policy_with(session: Session, file_id: str) -> Policy | None:
    """Return a stored policy whose gate evaluates with a file."""
    return list_suites(session).get(file_id)


def list_policies(session: Session, *, after: str | None, limit: int) -> Sequence[Policy]:
    """Return up to limit + 1 policies, newest first."""
    query = select(Policy)
    if after is not None:
        cursor = get_policy(session, after)
        if cursor is None:
            raise unknown_cursor(after)
        query = query.where(tuple_(Policy.created_at, Policy.id) < (cursor.created_at, cursor.id))
    return session.scalars(query.order_by(Policy.created_at.desc(), Policy.id.desc()).limit(limit + 1)).all()
