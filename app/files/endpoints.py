"""/v1/files"""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, Request, UploadFile
from fastapi.responses import Response

from app.auth import require
from app.database import read_only
from app.dependencies import CallerDep, DatabaseDep, ReadSessionDep, SessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.downloads import send_stored
from app.errors import InvalidRequest
from app.files import erasure, repository, service
from app.files.schemas import file_to_wire
from app.notary.downloads import note_download
from app.pages import build_page

router = APIRouter(prefix="/v1/files", tags=["files"])


@router.post("", dependencies=[needs(Scope.FILES_WRITE)])
def create_file(
    caller: CallerDep,
    database: DatabaseDep,
    settings: SettingsDep,
    file: UploadFile,
    purpose: Annotated[str, Form()],
    anchor: Annotated[Literal["created_at"] | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[int | None, Form(alias="expires_after[seconds]", ge=3600, le=2592000)] = None,
) -> dict[str, Any]:
    """Upload a file (JSON lines)."""
    if (anchor is None) is not (seconds is None):
        raise InvalidRequest("expires_after: anchor and seconds need each other", param="expires_after")
    created = service.create_file(
        database,
        settings,
        project_id=caller.project_id,
        filename=file.filename or "file",
        purpose=purpose,
        stream=file.file,
        expires_after_s=seconds,
    )
    return file_to_wire(created)


@router.get("", dependencies=[needs(Scope.FILES_READ)])
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


@router.get("/{file_id}", dependencies=[needs(Scope.FILES_READ)])
def retrieve_file(caller: CallerDep, session: ReadSessionDep, file_id: str) -> dict[str, Any]:
    """Return a file object."""
    return file_to_wire(service.get_file(session, caller.project_id, file_id))


@router.delete("/{file_id}", dependencies=[needs(Scope.FILES_WRITE)])
def delete_file(caller: CallerDep, session: SessionDep, file_id: str) -> dict[str, Any]:
    """Forget a file."""
    service.delete_file(session, caller.project_id, file_id)
    return {"id": file_id, "object": "file", "deleted": True}


@router.post("/{file_id}/erase", dependencies=[needs(Scope.FILES_WRITE)])
def erase_file(caller: CallerDep, session: SessionDep, file_id: str) -> dict[str, Any]:
    """Erase a data file: its bytes, what was found of its rows, and the key of their digests. It cannot be undone."""
    return erasure.erase_file(session, caller, file_id)


@router.get("/{file_id}/commitment_key", dependencies=[needs(Scope.AUDIT_READ)])
def retrieve_commitment_key(caller: CallerDep, session: SessionDep, file_id: str) -> dict[str, Any]:
    """Return the key of the digests by which records name a file's rows, deleted or not; the log is told who read it."""
    return erasure.read_key(session, caller, file_id)


@router.get("/{file_id}/content", dependencies=[needs(Scope.FILES_READ)])
def retrieve_content(
    request: Request,
    caller: CallerDep,
    database: DatabaseDep,
    settings: SettingsDep,
    file_id: str,
) -> Response:
    """Return the bytes of a file."""
    with read_only(database) as session:
        file = service.get_file(session, caller.project_id, file_id)
        is_adapter = file.purpose == service.RESULTS and repository.is_adapter(session, file.sha256)
    if file.purpose == service.RESULTS:
        require(caller, Scope.ARTIFACTS_READ)
    if is_adapter:
        note_download(database, key_id=caller.key_id, subject=file.job_id or file.id, sha256=file.sha256)
    return send_stored(
        request,
        settings.storage,
        file.sha256,
        media_type="application/octet-stream",
        headers={"content-disposition": "attachment"},
    )
