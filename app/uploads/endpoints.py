"""/v1/uploads"""

from typing import Any

from fastapi import APIRouter, UploadFile

from app.dependencies import CallerDep, DatabaseDep, SessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.idempotency import AttemptDep, once
from app.uploads import service
from app.uploads.schemas import UploadComplete, UploadCreate, part_to_wire, upload_to_wire

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], dependencies=[needs(Scope.FILES_WRITE)])


@router.post("")
def create_upload(
    caller: CallerDep, session: SessionDep, settings: SettingsDep, attempt: AttemptDep, body: UploadCreate
) -> dict[str, Any]:
    """Announce a file that will be sent in parts."""

    def create() -> dict[str, Any]:
        return upload_to_wire(service.create_upload(session, settings, caller.project_id, body), None)

    return once(session, attempt, body, create)


@router.post("/{upload_id}/parts")
def add_part(
    caller: CallerDep, database: DatabaseDep, settings: SettingsDep, upload_id: str, data: UploadFile
) -> dict[str, Any]:
    """Send a part of a file, in any order and in parallel with others."""
    return part_to_wire(service.add_part(database, settings, caller.project_id, upload_id, data.file))


@router.post("/{upload_id}/complete")
def complete_upload(
    caller: CallerDep, database: DatabaseDep, settings: SettingsDep, upload_id: str, body: UploadComplete
) -> dict[str, Any]:
    """Make a file of the parts, in the order that is given."""
    return upload_to_wire(*service.complete_upload(database, settings, caller.project_id, upload_id, body))


@router.post("/{upload_id}/cancel")
def cancel_upload(caller: CallerDep, session: SessionDep, upload_id: str) -> dict[str, Any]:
    """Give up an upload."""
    return upload_to_wire(service.cancel_upload(session, caller.project_id, upload_id), None)
