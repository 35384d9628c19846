"""Projects: made, renamed, limited."""

from sqlalchemy.orm import Session

from app.errors import InvalidRequest, NotFound
from app.models.base import new_id, utc_now
from app.models.tenancy import Project
from app.projects import repository
from app.quotas.limits import LimitsUpdate, change_limits

MAX_NAME = 255


def create_project(session: Session, name: str, limits: LimitsUpdate | None = None) -> Project:
    """Add a project. Raises InvalidRequest."""
    project = Project(id=new_id("proj_"), name=_check_name(name), created_at=utc_now())
    if limits is not None:
        change_limits(project, limits)
    session.add(project)
    session.flush()
    return project


def change_project(session: Session, project_id: str, *, name: str | None, limits: LimitsUpdate) -> Project:
    """Rename a project where a name is given, and set its limits."""
    project = get_project(session, project_id, lock=True)
    if name is not None:
        project.name = _check_name(name)
    change_limits(project, limits)
    session.flush()
    return project


def get_project(session: Session, project_id: str, *, lock: bool = False) -> Project:
    """Return a project. Raises NotFound."""
    project = repository.get_project(session, project_id, lock=lock)
    if project is None:
        raise NotFound(f"no project has the id {project_id!r}", param="project_id")
    return project


def _check_name(name: str) -> str:
    if not name.strip() or len(name) > MAX_NAME or "\x00" in name:
        raise InvalidRequest(f"name: a project's name has 1 to {MAX_NAME} characters", param="name")
    return name
