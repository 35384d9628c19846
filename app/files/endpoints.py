"""/v1/files"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request, UploadFile
from fastapi.responses import Response

from app.dependencies import CallerDep, DatabaseDep, ReadSessionDep, SessionDep, SettingsDep
from app.downloads import send_stored
from app.files import repository, service
from app.files.schemas import file_to_wire
from app.pages import build_page

router = APIRouter(prefix="/v1/files", tags=["files"])


@router.post("")
def create_file(
    caller: CallerDep,
    database: DatabaseDep,
    settings: SettingsDep,
    file: UploadFile,
    purpose: Annotated[str, Form()],
) -> dict[str, Any]:
    """Upload a training file (JSON lines)."""
    created = service.create_file(
        database,
        settings,
        project_id=caller.project_id,
        filename=file.filename or "file",
        purpose=purpose,
        stream=file.file,
    )
    return file_to_wire(created)


@router.get("")
def list_files(
    caller: CallerDep,
    session: ReadSessionDep,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10000)] = 10000,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """List files by time of creation."""
    files = repository.list_files(
        session, caller.project_id, purpose=purpose, after=after, limit=limit, order=order
    )
    return build_page([file_to_wire(file) for file in files], limit)


@router.get("/{file_id}")
def retrieve_file(caller: CallerDep, session: ReadSessionDep, file_id: str) -> dict[str, Any]:
    """Return a file object."""
    return file_to_wire(service.get_file(session, caller.project_id, file_id))


@router.delete("/{file_id}")
def delete_file(caller: CallerDep, session: SessionDep, file_id: str) -> dict[str, Any]:
    """Forget a file."""
    service.delete_file(session, caller.project_id, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get("/{file_id}/content")
def retrieve_content(
    request: Request, caller: CallerDep, session: ReadSessionDep, settings: SettingsDep, file_id: str
) -> Response:
    """Return the bytes of a file."""
    file = service.get_file(session, caller.project_id, file_id)
    return send_stored(
        request,
        settings.storage,
        file.sha256,
        media_type="application/octet-stream",
        headers={"content-disposition": "attachment"},
    )
