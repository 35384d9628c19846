"""Evaluations on the wire."""

from typing import Annotated, Any

from pydantic import Field

from app.domain.evaluation_spec import EvaluationSpec
from app.domain.job import WIRE_STATUS, State
from app.models.evaluation import Evaluation


class EvaluationCreate(EvaluationSpec):
    """The body of `POST /v1/evaluations`."""

    model: Annotated[str, Field(min_length=1, max_length=255)] = Field(
        description="Base model, fine-tuned model or checkpoint."
    )


def evaluation_to_wire(evaluation: Evaluation, *, whole: bool) -> dict[str, Any]:
    """Return an evaluation as an object of the wire; `whole` adds the result."""
    work = evaluation.work
    found: dict[str, Any] = {
        "id": evaluation.id,
        "object": "evaluation",
        "created_at": int(evaluation.created_at.timestamp()),
        "finished_at": int(work.finished_at.timestamp()) if work.finished_at else None,
        "status": WIRE_STATUS[State(work.state)],
        "error": work.error,
        "model": evaluation.model,
        "base_model": evaluation.base_model,
        "fine_tuning_job_id": evaluation.job_id,
        **evaluation.request,
        "result_sha256": evaluation.result_sha256,
        "replies_file": evaluation.replies_file,
    }
    if whole:
        found["result"] = evaluation.result
    return found
