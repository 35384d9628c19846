"""/v1/models"""

from typing import Any

from fastapi import APIRouter

from app.base_models import repository
from app.dependencies import CallerDep, ReadSessionDep
from app.errors import NotFound

router = APIRouter(prefix="/v1/models", tags=["models"])


def model_to_wire(name: str, created: float, owned_by: str) -> dict[str, Any]:
    """Return OpenAI's model object."""
    return {"id": name, "object": "model", "created": int(created), "owned_by": owned_by}


@router.get("")
def list_models(caller: CallerDep, session: ReadSessionDep) -> dict[str, Any]:
    """List the base models and the project's fine-tuned models."""
    data = [
        model_to_wire(base.name, base.created_at.timestamp(), "tether")
        for base in repository.list_base_models(session)
    ]
    data += [
        model_to_wire(str(job.fine_tuned_model), job.created_at.timestamp(), caller.project_id)
        for job in repository.list_tuned_models(session, caller.project_id)
    ]
    return {"object": "list", "data": data}


@router.get("/{model:path}")
def retrieve_model(caller: CallerDep, session: ReadSessionDep, model: str) -> dict[str, Any]:
    """Return a base model, a fine-tuned model, or a checkpoint of one."""
    base = repository.get_base_model(session, model)
    if base is not None:
        return model_to_wire(base.name, base.created_at.timestamp(), "tether")
    tuned = repository.get_tuned_model(session, caller.project_id, model)
    found = tuned or repository.get_named_checkpoint(session, caller.project_id, model)
    if found is None:
        raise NotFound(
            f"the model {model!r} does not exist or belongs to another project",
            param="model",
            code="model_not_found",
        )
    return model_to_wire(model, found.created_at.timestamp(), caller.project_id)
