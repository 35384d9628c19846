"""Projects: made, renamed, limited."""

from sqlalchemy.orm import Session

from app.domain.ledger import digest_of
from app.errors import InvalidRequest, NotFound
from app.models.base import new_id, utc_now
from app.models.tenancy import Project
from app.notary.repository import COMMAND_LINE, add_event
from app.projects import repository
from app.quotas.limits import LimitsUpdate, change_limits

MAX_NAME = 255


def create_project(
    session: Session, name: str, limits: LimitsUpdate | None = None, *, actor: str = COMMAND_LINE
) -> Project:
    """Add a project. Raises InvalidRequest."""
    project = Project(id=new_id("proj_"), name=_check_name(name), created_at=utc_now())
    if limits is not None:
        change_limits(project, limits)
    session.add(project)
    session.flush()
    _note(session, "project.created", project, actor)
    return project


def change_project(
    session: Session, project_id: str, *, name: str | None, limits: LimitsUpdate, actor: str = COMMAND_LINE
) -> Project:
    """Rename a project where a name is given, and set its limits."""
    project = get_project(session, project_id, lock=True)
    if name is not None:
        project.name = _check_name(name)
    before = project.limits
    change_limits(project, limits)
    session.flush()
    if project.limits != before:
        _note(session, "project.limited", project, actor)
    return project


def _note(session: Session, event: str, project: Project, actor: str) -> None:
    """Note a project and the limits of its own. Its name stays out: it is what somebody wrote."""
    add_event(session, event, actor=actor, subject=project.id, sha256=digest_of(project.limits or {}))


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
