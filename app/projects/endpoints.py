"""/v1/projects"""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.dependencies import CallerDep, ReadSessionDep, SessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.pages import build_page
from app.policies.service import assign_policy
from app.projects import repository, service
from app.projects.schemas import ProjectCreate, ProjectUpdate, project_to_wire

router = APIRouter(prefix="/v1/projects", tags=["projects"], dependencies=[needs(Scope.ADMIN)])


@router.post("")
def create_project(
    caller: CallerDep, session: SessionDep, settings: SettingsDep, body: ProjectCreate
) -> dict[str, Any]:
    """Add a project."""
    project = service.create_project(session, body.name, body.limits, actor=caller.key_id)
    return project_to_wire(project, settings)


@router.get("")
def list_projects(
    session: ReadSessionDep,
    settings: SettingsDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """List the projects, newest first."""
    projects = repository.list_projects(session, after=after, limit=limit)
    return build_page([project_to_wire(project, settings) for project in projects], limit)


@router.get("/{project_id}")
def retrieve_project(session: ReadSessionDep, settings: SettingsDep, project_id: str) -> dict[str, Any]:
    """Return a project."""
    return project_to_wire(service.get_project(session, project_id), settings)


@router.patch("/{project_id}")
def change_project(
    caller: CallerDep, session: SessionDep, settings: SettingsDep, project_id: str, body: ProjectUpdate
) -> dict[str, Any]:
    """Rename a project, change its limits, or give it another safety policy for the jobs that it creates from now on."""
    project = service.change_project(
        session, project_id, name=body.name, limits=body.limits, actor=caller.key_id
    )
    if "policy" in body.model_fields_set:
        assign_policy(session, caller, project, body.policy)
    return project_to_wire(project, settings)
