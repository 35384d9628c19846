"""Models on the wire."""

from typing import Any

from app.base_models.tuned import TunedModel
from app.domain.control_law import is_protected
from app.models.base_model import BaseModel


def base_to_wire(base: BaseModel) -> dict[str, Any]:
    """Return OpenAI's model object for a base model."""
    return {
        "id": base.name,
        "object": "model",
        "created": int(base.created_at.timestamp()),
        "owned_by": "tether",
        "base_model": None,
        "sha256": base.digest,
        "revision": base.revision,
        "hidden_size": base.hidden_size,
        "max_position_embeddings": base.max_position_embeddings,
    }


def tuned_to_wire(model: TunedModel) -> dict[str, Any]:
    """Return OpenAI's model object for a fine-tuned model or a checkpoint, with the path of its adapter beside it.

    Whether it was protected is told to whoever may use it, a project that it is shared with too.
    """
    path = f"/v1/fine_tuning/jobs/{model.job.id}"
    if model.checkpoint is not None:
        path += f"/checkpoints/{model.checkpoint.id}"
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": model.job.project_id,
        "base_model": model.job.model,
        "job": model.job.id,
        "checkpoint": model.checkpoint and model.checkpoint.id,
        "protected": is_protected((model.job.spec or model.job.request)["safety"]),
        "adapter": f"{path}/adapter" if model.adapter_sha256 else None,
    }
