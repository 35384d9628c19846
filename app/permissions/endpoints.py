"""/v1/fine_tuning/checkpoints/{checkpoint}/permissions. A checkpoint's name may contain slashes."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from app.dependencies import CallerDep, ReadSessionDep, SessionDep, needs
from app.domain.scopes import Scope
from app.pages import build_page
from app.permissions import repository, service
from app.permissions.schemas import PermissionCreate, permission_to_wire

router = APIRouter(
    prefix="/v1/fine_tuning/checkpoints/{checkpoint:path}/permissions", tags=["checkpoint permissions"]
)


@router.post("", dependencies=[needs(Scope.PERMISSIONS_WRITE)])
def create_permissions(
    caller: CallerDep, session: SessionDep, checkpoint: str, body: PermissionCreate
) -> dict[str, Any]:
    """Let other projects see a fine-tuned model or checkpoint, and download its adapter."""
    permissions = service.create_permissions(session, caller, checkpoint, body.project_ids)
    return build_page([permission_to_wire(each) for each in permissions], len(permissions))


@router.get("", dependencies=[needs(Scope.PERMISSIONS_READ)])
def list_permissions(
    caller: CallerDep,
    session: ReadSessionDep,
    checkpoint: str,
    project_id: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    order: Literal["ascending", "descending"] = "descending",
) -> dict[str, Any]:
    """List which projects may use a fine-tuned model or checkpoint."""
    model = service.find_shareable(session, caller, checkpoint)
    permissions = repository.list_permissions(
        session, model.name, project_id=project_id, after=after, limit=limit, order=order
    )
    return build_page([permission_to_wire(each) for each in permissions], limit)


@router.delete("/{permission_id}", dependencies=[needs(Scope.PERMISSIONS_WRITE)])
def delete_permission(
    caller: CallerDep, session: SessionDep, checkpoint: str, permission_id: str
) -> dict[str, Any]:
    """Take a permission back."""
    service.delete_permission(session, caller, checkpoint, permission_id)
    return {"id": permission_id, "object": "checkpoint.permission", "deleted": True}
