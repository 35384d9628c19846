"""/v1/usage"""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.dependencies import CallerDep, ReadSessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.errors import PermissionDenied
from app.projects.repository import list_projects
from app.projects.service import get_project
from app.usage.service import usage_of

router = APIRouter(prefix="/v1/usage", tags=["usage"])


@router.get("", dependencies=[needs(Scope.USAGE_READ)])
def retrieve_usage(
    caller: CallerDep,
    session: ReadSessionDep,
    settings: SettingsDep,
    project_id: str | None = None,
    month: Annotated[str | None, Query(pattern=r"^20\d\d-(0[1-9]|1[0-2])$")] = None,
) -> dict[str, Any]:
    """Return what the project used, and its limits; an operator may name another project, or `all` for a list."""
    begin = None if month is None else datetime.strptime(month, "%Y-%m").replace(tzinfo=UTC)
    wanted = project_id or caller.project_id
    if wanted != caller.project_id and Scope.ADMIN not in caller.scopes:
        raise PermissionDenied(
            f"project_id: only a key with the scope {Scope.ADMIN.value!r} sees the usage of other projects",
            param="project_id",
        )
    if wanted != "all":
        return usage_of(session, settings, get_project(session, wanted), begin)
    data = [usage_of(session, settings, project, begin) for project in list_projects(session)]
    return {"object": "list", "data": data, "has_more": False}
