"""Uploads on the wire."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.domain.frozen import Frozen
from app.files.schemas import file_to_wire
from app.models.file import File
from app.models.upload import Upload, UploadPart

MAX_PARTS = 10_000


class ExpiresAfter(Frozen):
    """When a file expires."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]


class UploadCreate(Frozen):
    """The body of `POST /v1/uploads`."""

    filename: Annotated[str, Field(min_length=1)]
    purpose: str
    bytes: Annotated[int, Field(ge=1, le=8 * 1024**3)]
    mime_type: Annotated[
        str, Field(pattern=r"^(text/[\w.+-]+|application/([\w.+-]*json[\w.+-]*|octet-stream))$")
    ]
    """The files of this service are JSON lines; anything else, above all an archive, is refused before it is sent."""
    expires_after: ExpiresAfter | None = None


class UploadComplete(Frozen):
    """The body of `POST /v1/uploads/{id}/complete`."""

    part_ids: Annotated[list[str], Field(min_length=1, max_length=MAX_PARTS)]
    md5: Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{32}$")] | None = None


def upload_to_wire(upload: Upload, file: File | None) -> dict[str, Any]:
    """Return OpenAI's upload object."""
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.size_bytes,
        "created_at": int(upload.created_at.timestamp()),
        "expires_at": int(upload.expires_at.timestamp()),
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": file_to_wire(file) if file else None,
    }


def part_to_wire(part: UploadPart) -> dict[str, Any]:
    """Return OpenAI's object of a part."""
    return {
        "id": part.id,
        "object": "upload.part",
        "created_at": int(part.created_at.timestamp()),
        "upload_id": part.upload_id,
    }
