"""Files on the wire."""

from typing import Any

from app.domain.conversion import FORMATS
from app.models.file import File


def file_to_wire(file: File) -> dict[str, Any]:
    """Return OpenAI's file object."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()) if file.expires_at else None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": file.status_details,
        "format": file.format,
        "read_as": FORMATS[file.format].read_as if file.format else None,
        "derived_from": file.derived_from,
        "rows": file.rows,
    }
