"""Generations: a job that goes on from the adapter of an earlier one, on the same base model."""

from typing import Any

from sqlalchemy.orm import Session

from app.auth import Caller
from app.base_models.repository import get_tuned_model
from app.base_models.tuned import TunedModel
from app.domain.training_spec import TrainingOptions
from app.errors import InvalidRequest, NotFound
from app.jobs.schemas import JobCreate
from app.models.job import Job

TUNED = "ft:"
"""What the name of every fine-tuned model begins with, and that of no base model."""


def find_parent(session: Session, caller: Caller, body: JobCreate) -> TunedModel | None:
    """Return the fine-tuned model or checkpoint that a request goes on from; None where it names a base model.

    Raises NotFound where the project may use no such model, or its weights are gone.
    """
    if not body.model.startswith(TUNED):
        return None
    found = get_tuned_model(session, caller.project_id, body.model)
    if found is None or found.adapter_sha256 is None:
        raise NotFound(
            f"model: no fine-tuned model {body.model!r} can be trained further in this project: it does not exist, was"
            " deleted, or its job has not succeeded. GET /v1/models lists those that can",
            param="model",
            code="model_not_found",
        )
    return found


def adapter_shape(options: TrainingOptions, parent: TunedModel | None) -> TrainingOptions:
    """Return the options of a job, with the parent's shape of the adapter. Raises InvalidRequest for another shape."""
    if parent is None:
        return options
    shape = {name: _spec(parent.job)[name] for name in ("adapter", "lora_r", "lora_alpha")}
    for name, value in shape.items():
        asked = getattr(options, name)
        if name in options.model_fields_set and asked != value:
            raise InvalidRequest(
                f"training.{name}: found {asked!r}; {parent.name} has {value!r}, which its weights keep. Leave it out",
                param=f"training.{name}",
            )
    return options.model_copy(update=shape)


def extend_lineage(parent: TunedModel | None) -> list[dict[str, Any]]:
    """Return the generations before a job, the nearest first."""
    if parent is None:
        return []
    nearest = {"model": parent.name, **_named(parent)}
    return [nearest, *(parent.job.lineage or [])]


def parent_body(parent: TunedModel | None) -> dict[str, Any] | None:
    """Return what the record of a job says of the adapter that it goes on from."""
    return None if parent is None else {**_named(parent), "adapter_sha256": parent.adapter_sha256}


def _named(parent: TunedModel) -> dict[str, Any]:
    return {
        "job": parent.job.id,
        "step": parent.checkpoint.step if parent.checkpoint else parent.job.step,
    }


def _spec(job: Job) -> dict[str, Any]:
    if job.spec is None:
        raise ValueError(f"{job.id} released a model, but has no spec")
    return job.spec
