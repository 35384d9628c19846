"""Projects on the wire."""

from dataclasses import asdict
from typing import Any

from app.domain.frozen import Frozen
from app.models.tenancy import Project
from app.quotas.limits import LimitsUpdate, limits_of
from app.settings import Settings


class ProjectCreate(Frozen):
    """The body of `POST /v1/projects`."""

    name: str
    limits: LimitsUpdate = LimitsUpdate()


class ProjectUpdate(Frozen):
    """The body of `PATCH /v1/projects/{project_id}`."""

    NULL_IS_NONE = frozenset({"policy"})

    name: str | None = None
    policy: str | None = None
    """Id of a stored policy. Null: the installation's. Absent: as it was."""
    limits: LimitsUpdate = LimitsUpdate()


def project_to_wire(project: Project, settings: Settings) -> dict[str, Any]:
    """Return a project with the limits that hold for it, and those among them that are its own."""
    return {
        "id": project.id,
        "object": "project",
        "name": project.name,
        "created_at": int(project.created_at.timestamp()),
        "policy": project.policy_id,
        "limits": asdict(limits_of(project, settings)),
        "own_limits": project.limits or {},
    }
