"""Models on the wire."""

from typing import Any

from app.base_models.tuned import TunedModel
from app.models.base_model import BaseModel


def base_to_wire(base: BaseModel) -> dict[str, Any]:
    """Return OpenAI's model object for a base model."""
    return {
        "id": base.name,
        "object": "model",
        "created": int(base.created_at.timestamp()),
        "owned_by": "tether",
    }


def tuned_to_wire(model: TunedModel) -> dict[str, Any]:
    """Return OpenAI's model object for a fine-tuned model or a checkpoint, with the path of its adapter beside it."""
    path = f"/v1/fine_tuning/jobs/{model.job.id}"
    if model.checkpoint is not None:
        path += f"/checkpoints/{model.checkpoint.id}"
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": model.job.project_id,
        "job": model.job.id,
        "adapter": f"{path}/adapter" if model.adapter_sha256 else None,
    }
