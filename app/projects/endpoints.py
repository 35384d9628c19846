"""/v1/projects"""

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.dependencies import ReadSessionDep, SessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.pages import build_page
from app.projects import repository, service
from app.projects.schemas import ProjectCreate, ProjectUpdate, project_to_wire

router = APIRouter(prefix="/v1/projects", tags=["projects"], dependencies=[needs(Scope.ADMIN)])


@router.post("")
def create_project(session: SessionDep, settings: SettingsDep, body: ProjectCreate) -> dict[str, Any]:
    """Add a project."""
    return project_to_wire(service.create_project(session, body.name, body.limits), settings)


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
    session: SessionDep, settings: SettingsDep, project_id: str, body: ProjectUpdate
) -> dict[str, Any]:
    """Rename a project, or change its limits."""
    project = service.change_project(session, project_id, name=body.name, limits=body.limits)
    return project_to_wire(project, settings)
