"""Checkpoint permissions on the wire."""

from typing import Annotated, Any

from pydantic import Field

from app.domain.frozen import Frozen
from app.models.permission import CheckpointPermission


class PermissionCreate(Frozen):
    """The body of `POST /v1/fine_tuning/checkpoints/{checkpoint}/permissions`."""

    project_ids: Annotated[list[str], Field(min_length=1, max_length=100)]


def permission_to_wire(permission: CheckpointPermission) -> dict[str, Any]:
    """Return OpenAI's object of a permission."""
    return {
        "id": permission.id,
        "object": "checkpoint.permission",
        "created_at": int(permission.created_at.timestamp()),
        "project_id": permission.project_id,
    }
