"""/v1/critics"""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.critics import repository, service
from app.critics.schemas import CriticCreate, critic_to_wire
from app.dependencies import CallerDep, DatabaseDep, ReadSessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.pages import build_page

router = APIRouter(prefix="/v1/critics", tags=["critics"])


@router.post("", status_code=202, dependencies=[needs(Scope.CRITICS_WRITE)])
def create_critic(
    caller: CallerDep, database: DatabaseDep, settings: SettingsDep, body: CriticCreate
) -> dict[str, Any]:
    """Have a critic fitted; poll it until its status is succeeded or failed."""
    work = service.create_critic(database, settings, caller, body)
    return critic_to_wire(work, None, whole=True)


@router.get("", dependencies=[needs(Scope.CRITICS_READ)])
def list_critics(
    caller: CallerDep,
    session: ReadSessionDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """List the critics of every base model, those under way and failed ones too; the last asked for come first."""
    entries = repository.list_entries(session, after=after, limit=limit)
    return build_page([critic_to_wire(*entry, whole=False) for entry in entries], limit)


@router.get("/{critic_id}", dependencies=[needs(Scope.CRITICS_READ)])
def retrieve_critic(caller: CallerDep, session: ReadSessionDep, critic_id: str) -> dict[str, Any]:
    """Return a critic with its whole report, or how far it is, or why it failed."""
    return critic_to_wire(*service.get_entry(session, critic_id), whole=True)
