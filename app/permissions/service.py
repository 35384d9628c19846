"""The rules of checkpoint permissions: who may share which model with whom."""

from sqlalchemy.orm import Session

from app.auth import Caller
from app.base_models.repository import get_tuned_model, load_tuned_model
from app.base_models.tuned import TunedModel
from app.domain.scopes import Scope
from app.errors import InvalidRequest, NotFound
from app.models.permission import CheckpointPermission
from app.notary.repository import add_event
from app.permissions import repository


def find_shareable(session: Session, caller: Caller, name: str) -> TunedModel:
    """Return the model or checkpoint that a permission is about. Raises NotFound.

    An operator may share those of every project, anybody else with the scope those of the own one.
    """
    if Scope.ADMIN in caller.scopes:
        found = load_tuned_model(session, name)
    else:
        found = get_tuned_model(session, caller.project_id, name)
        if found is not None and found.job.project_id != caller.project_id:
            found = None
    if found is None:
        raise NotFound(
            f"there is no fine-tuned model or checkpoint {name!r} to share; it must have been released, and must not have"
            " been deleted",
            param="fine_tuned_model_checkpoint",
            code="model_not_found",
        )
    return found


def create_permissions(
    session: Session, caller: Caller, name: str, project_ids: list[str]
) -> list[CheckpointPermission]:
    """Let projects use a model. A permission that there is already is given back as it is."""
    model = find_shareable(session, caller, name)
    permissions = []
    # Sorted, so that two requests lock the same projects in the same order.
    for project_id in sorted(set(project_ids)):
        if not repository.lock_project(session, project_id):
            at = project_ids.index(project_id)
            raise InvalidRequest(
                f"project_ids[{at}]: there is no project {project_id!r}",
                param=f"project_ids[{at}]",
                code="project_not_found",
            )
        known = repository.find_permission(session, model.name, project_id)
        if known is None:
            known = repository.add_permission(session, model.name, project_id)
            _note(session, caller, "permission.granted", model, known)
        permissions.append(known)
    return permissions


def delete_permission(session: Session, caller: Caller, name: str, permission_id: str) -> None:
    """Take a permission back. Raises NotFound."""
    model = find_shareable(session, caller, name)
    permission = repository.get_permission(session, model.name, permission_id)
    if permission is None:
        raise NotFound(f"the model {model.name!r} has no permission {permission_id!r}", param="permission_id")
    _note(session, caller, "permission.revoked", model, permission)
    session.delete(permission)


def _note(
    session: Session, caller: Caller, event: str, model: TunedModel, permission: CheckpointPermission
) -> None:
    """Note whose weights are opened to whom. The name of a model has words of its maker's; its id has none."""
    shared = model.checkpoint.id if model.checkpoint else model.job.id
    subject = f"{shared}:{permission.project_id}"
    add_event(session, event, actor=caller.key_id, subject=subject, sha256=model.adapter_sha256)
