"""/v1/safety_sets"""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.dependencies import CallerDep, DatabaseDep, ReadSessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.models.safety_set import SetKind
from app.pages import build_page
from app.safety_sets import repository, service
from app.safety_sets.schemas import SafetySetCreate, set_to_wire

router = APIRouter(prefix="/v1/safety_sets", tags=["safety sets"])


@router.post("", dependencies=[needs(Scope.CRITICS_WRITE)])
def create_set(
    caller: CallerDep, database: DatabaseDep, settings: SettingsDep, body: SafetySetCreate
) -> dict[str, Any]:
    """Register an uploaded file of rows as a set of a base model; new jobs on it use the newest set."""
    return set_to_wire(service.create_set(database, settings, caller, body))


@router.get("", dependencies=[needs(Scope.CRITICS_READ)])
def list_sets(
    caller: CallerDep,
    session: ReadSessionDep,
    kind: SetKind | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """List the sets of every base model, newest first."""
    kinds = service.CHECKS.keys() if kind is None else (kind,)
    sets = repository.list_sets(session, kinds=kinds, after=after, limit=limit)
    return build_page([set_to_wire(each) for each in sets], limit)


@router.get("/{set_id}", dependencies=[needs(Scope.CRITICS_READ)])
def retrieve_set(caller: CallerDep, session: ReadSessionDep, set_id: str) -> dict[str, Any]:
    """Return a set."""
    return set_to_wire(service.get_set(session, set_id))
