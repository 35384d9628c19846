"""/v1/policies"""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.dependencies import CallerDep, DatabaseDep, ReadSessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.models.policy import Policy
from app.pages import build_page
from app.policies import repository, service
from app.policies.schemas import PolicyCreate, policy_to_wire

router = APIRouter(prefix="/v1/policies", tags=["policies"], dependencies=[needs(Scope.ADMIN)])


def show(stored: Policy, *, whole: bool = True) -> dict[str, Any]:
    """Return a stored policy as the wire has it."""
    return policy_to_wire(stored, repository.read_policy(stored), whole=whole)


@router.post("")
def create_policy(
    caller: CallerDep, database: DatabaseDep, settings: SettingsDep, body: PolicyCreate
) -> dict[str, Any]:
    """Store a version of a safety policy; give it to projects with `PATCH /v1/projects/{project_id}`."""
    return show(service.store_policy(database, settings, caller, body))


@router.get("")
def list_policies(
    session: ReadSessionDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """List the stored policies, newest first."""
    found = repository.list_policies(session, after=after, limit=limit)
    return build_page([show(each, whole=False) for each in found], limit)


@router.get("/{policy_id}")
def retrieve_policy(session: ReadSessionDep, policy_id: str) -> dict[str, Any]:
    """Return a stored policy with its text."""
    return show(service.get_policy(session, policy_id))
