"""Keys on the wire. What opens is in the reply to the request that made it, and nowhere else."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from app.domain.frozen import Frozen
from app.domain.scopes import Role, Scope
from app.models.tenancy import ApiKey

DAY_S = 24 * 3600


class KeyCreate(Frozen):
    """The body of `POST /v1/api_keys`."""

    name: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00]*\S[^\x00]*$")]
    role: Role = Role.MEMBER
    scopes: list[Scope] | None = None
    """Fewer than the role has. Null: all of them."""
    project_id: str | None = None
    """For operators. Null: the project of the key that asks."""
    expires_in_s: Annotated[int, Field(ge=1, le=10 * 365 * DAY_S)] | None = None
    """Null: as long as the key that asks."""


class KeyRotate(Frozen):
    """The body of `POST /v1/api_keys/{key_id}/rotate`."""

    overlap_s: Annotated[int, Field(ge=0, le=30 * DAY_S)] = DAY_S
    """How long the old key still opens."""


def key_to_wire(key: ApiKey, scopes: frozenset[Scope], *, secret: str | None = None) -> dict[str, Any]:
    """Return a key, with what opens where it was made just now."""
    wire = {
        "id": key.id,
        "object": "api_key",
        "name": key.name,
        "project_id": key.project_id,
        "role": key.role,
        "scopes": sorted(scope.value for scope in scopes),
        "created_at": _seconds(key.created_at),
        "expires_at": _seconds(key.expires_at),
        "revoked_at": _seconds(key.revoked_at),
        "last_used_at": _seconds(key.last_used_at),
        "replaced_by": key.replaced_by,
    }
    return wire if secret is None else {**wire, "key": secret}


def _seconds(time: datetime | None) -> int | None:
    return None if time is None else int(time.timestamp())
