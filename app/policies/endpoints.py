"""/v1/policies"""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.dependencies import CallerDep, DatabaseDep, PolicyDep, ReadSessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.models.policy import Policy
from app.pages import build_page
from app.policies import repository, service
from app.policies.schemas import PolicyCreate, in_force_to_wire, policy_to_wire

router = APIRouter(prefix="/v1/policies", tags=["policies"])


def show(stored: Policy, *, whole: bool = True) -> dict[str, Any]:
    """Return a stored policy as the wire has it."""
    return policy_to_wire(stored, repository.read_policy(stored), whole=whole)


@router.post("", dependencies=[needs(Scope.ADMIN)])
def create_policy(
    caller: CallerDep, database: DatabaseDep, settings: SettingsDep, body: PolicyCreate
) -> dict[str, Any]:
    """Store a version of a safety policy; give it to projects with `PATCH /v1/projects/{project_id}`."""
    return show(service.store_policy(database, settings, caller, body))


@router.get("", dependencies=[needs(Scope.ADMIN)])
def list_policies(
    session: ReadSessionDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """List the stored policies, newest first."""
    found = repository.list_policies(session, after=after, limit=limit)
    return build_page([show(each, whole=False) for each in found], limit)


@router.get("/in_force", dependencies=[needs(Scope.JOBS_READ)])
def retrieve_policy_in_force(
    caller: CallerDep, session: ReadSessionDep, installation: PolicyDep
) -> dict[str, Any]:
    """Return the policy that a new job of the project is held to, and what it says of each preset."""
    stored = repository.get_policy_of(session, caller.project_id)
    policy, sha256 = service.policy_in_force(session, caller.project_id, installation)
    return in_force_to_wire(policy, sha256, None if stored is None else stored.id)


@router.get("/{policy_id}", dependencies=[needs(Scope.ADMIN)])
def retrieve_policy(session: ReadSessionDep, policy_id: str) -> dict[str, Any]:
    """Return a stored policy with its text."""
    return show(service.get_policy(session, policy_id))
