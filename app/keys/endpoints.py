"""/v1/api_keys"""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.auth import Caller
from app.dependencies import CallerDep, ReadSessionDep, SessionDep, needs
from app.domain.scopes import Scope
from app.errors import PermissionDenied
from app.keys import repository, service
from app.keys.schemas import KeyCreate, KeyRotate, key_to_wire
from app.models.base import utc_now
from app.models.tenancy import ApiKey
from app.pages import build_page

router = APIRouter(prefix="/v1/api_keys", tags=["keys"])


def as_grantor(caller: Caller) -> service.Grantor:
    """Return what a caller may give."""
    everywhere = Scope.ADMIN in caller.scopes
    return service.Grantor(
        caller.key_id, None if everywhere else caller.project_id, caller.scopes, caller.expires_at
    )


def show(key: ApiKey, secret: str | None = None) -> dict[str, Any]:
    """Return a key as the wire has it."""
    return key_to_wire(key, service.scopes_of(key), secret=secret)


@router.post("", dependencies=[needs(Scope.KEYS_WRITE)])
def create_key(caller: CallerDep, session: SessionDep, body: KeyCreate) -> dict[str, Any]:
    """Make a key. What opens is in this reply and nowhere else."""
    life = body.expires_in_s
    made = service.grant_key(
        session,
        as_grantor(caller),
        project_id=body.project_id or caller.project_id,
        name=body.name,
        role=body.role,
        scopes=body.scopes,
        expires_at=None if life is None else utc_now() + timedelta(seconds=life),
    )
    return show(*made)


@router.get("", dependencies=[needs(Scope.KEYS_READ)])
def list_keys(
    caller: CallerDep,
    session: ReadSessionDep,
    project_id: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """List the project's keys, newest first; an operator may name another project, or `all`."""
    wanted: str | None = project_id or caller.project_id
    if wanted != caller.project_id and Scope.ADMIN not in caller.scopes:
        raise PermissionDenied(
            f"project_id: only a key with the scope {Scope.ADMIN.value!r} sees the keys of other projects",
            param="project_id",
        )
    if wanted == "all":
        wanted = None
    keys = repository.list_keys(session, wanted, after=after, limit=limit)
    return build_page([show(key) for key in keys], limit)


@router.get("/{key_id}", dependencies=[needs(Scope.KEYS_READ)])
def retrieve_key(caller: CallerDep, session: ReadSessionDep, key_id: str) -> dict[str, Any]:
    """Return a key, without what opens."""
    return show(service.get_key(session, as_grantor(caller).project_id, key_id))


@router.delete("/{key_id}", dependencies=[needs(Scope.KEYS_WRITE)])
def revoke_key(caller: CallerDep, session: SessionDep, key_id: str) -> dict[str, Any]:
    """Revoke a key: it opens nothing from now on. Its row stays, for the records that name it."""
    return show(service.revoke_key(session, as_grantor(caller), key_id))


@router.post("/{key_id}/rotate", dependencies=[needs(Scope.KEYS_WRITE)])
def rotate_key(
    caller: CallerDep, session: SessionDep, key_id: str, body: KeyRotate | None = None
) -> dict[str, Any]:
    """Make a key like this one; this one still opens for `overlap_s`."""
    overlap = timedelta(seconds=(body or KeyRotate()).overlap_s)
    made = service.rotate_key(session, as_grantor(caller), key_id, overlap=overlap)
    return show(*made)
