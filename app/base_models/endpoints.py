"""/v1/models. The name of a model may contain slashes."""

from typing import Any

from fastapi import APIRouter

from app.base_models import repository, weights
from app.base_models.schemas import base_to_wire, tuned_to_wire
from app.dependencies import CallerDep, ReadSessionDep, SessionDep, needs
from app.domain.scopes import Scope

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", dependencies=[needs(Scope.MODELS_READ)])
def list_models(caller: CallerDep, session: ReadSessionDep) -> dict[str, Any]:
    """List the base models, and the fine-tuned models and checkpoints that the project may use."""
    data = [base_to_wire(base) for base in repository.list_base_models(session)]
    data += [tuned_to_wire(model) for model in repository.list_tuned_models(session, caller.project_id)]
    return {"object": "list", "data": data}


@router.get("/{model:path}", dependencies=[needs(Scope.MODELS_READ)])
def retrieve_model(caller: CallerDep, session: ReadSessionDep, model: str) -> dict[str, Any]:
    """Return a base model, a fine-tuned model, or a checkpoint of one."""
    base = repository.get_base_model(session, model)
    if base is not None:
        return base_to_wire(base)
    return tuned_to_wire(weights.get_tuned_model(session, caller.project_id, model))


@router.delete("/{model:path}", dependencies=[needs(Scope.MODELS_WRITE)])
def delete_model(caller: CallerDep, session: SessionDep, model: str) -> dict[str, Any]:
    """Delete a fine-tuned model or a checkpoint: its weights go, and the record of its job stays."""
    weights.delete_tuned_model(session, caller.project_id, model, actor=caller.key_id)
    return {"id": model, "object": "model", "deleted": True}
