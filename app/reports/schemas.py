"""Reports on the wire."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from app.domain.conversion import FORMATS
from app.domain.frozen import Frozen
from app.domain.job import State
from app.models.base_model import Critic
from app.models.file import File
from app.models.report import Report

RowIndex = Annotated[int, Field(ge=0, lt=2**31)]


class Exclusion(Frozen):
    """The body of `POST /v1/files/{file_id}/exclude`: which rows to leave out, and what to do with the rest."""

    rows: Annotated[list[RowIndex], Field(min_length=1, max_length=1_000_000)] | None = None
    risk_above: Annotated[float, Field(ge=0, lt=1)] | None = None
    model: str | None = None
    run_again: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> "Exclusion":
        if (self.rows is None) is (self.risk_above is None):
            raise ValueError("give either rows or risk_above, and not both")
        if (self.risk_above is None) is not (self.model is None):
            raise ValueError(
                "risk_above needs model, the base model whose critic measured the risks, and rows does not"
            )
        return self


def status_of(report: Report) -> str:
    """Return where a report stands, in the wire's words."""
    state = State(report.work.state)
    return str(state) if state in (State.SUCCEEDED, State.FAILED, State.CANCELLED) else "running"


def report_to_wire(
    report: Report,
    *,
    visibility: str,
    critic: Critic | None,
    time: dict[str, Any],
    kind: str = "dataset_report",
) -> dict[str, Any]:
    """Return a report as far as it is made; of the risks what the operator's policy lets be seen."""
    args = report.work.args
    head: dict[str, Any] = {
        "id": report.id,
        "object": kind,
        "status": status_of(report),
        "created_at": int(report.created_at.timestamp()),
        "training_file": args["training_file"],
        "validation_file": args["validation_file"],
        "model": args["base_model"],
        "error": report.work.error,
    }
    if report.body is None:
        return head
    body = dict(report.body)
    shown = body.pop("by_visibility")[visibility]
    failed = body.pop("risk_failed", None)
    return {
        **head,
        **body,
        "safety": args["spec"]["safety"],
        "risk": {
            "visibility": visibility,
            "critic": critic_to_wire(critic),
            "note": _note(args, critic, visibility),
            "rows_failed": failed,
            **(shown["risk"] or {}),
        },
        "training": {
            **body["training"],
            "steps": shown["steps"],
            "expected_beta_mean": shown["expected_beta_mean"],
            "time": time,
        },
    }


def critic_to_wire(critic: Critic | None) -> dict[str, Any] | None:
    """Return who measured, and how good it is: a risk number is one critic's estimate."""
    if critic is None:
        return None
    quality = {name: critic.report.get(name) for name in ("auroc", "tpr_at_1_percent_fpr")}
    return {"id": critic.id, "sha256": critic.digest, "quality": quality}


def _note(args: dict[str, Any], critic: Critic | None, visibility: str) -> str | None:
    wanted = args["spec"]["safety"].get("critic") or {}
    if wanted.get("type") == "constant":
        return "the job's critic is a constant: every row has the same risk"
    if critic is None:
        return "nothing measured the rows: no critic was fitted for this base model, or the report was asked for without"
    if visibility == "none":
        return "the operator's policy shows no risks of rows"
    if wanted.get("type") in ("judge", "combined"):
        return "read by the activation critic alone: a report asks no judge, so that a job's own risks may be higher"
    return None


def unchecked_to_wire(file: File) -> dict[str, Any]:
    """Return the report on a file that cannot be trained on, or is not known to be good yet."""
    waiting = file.status == "uploaded"
    found = file.findings or {}
    return {
        "object": "dataset_report",
        "status": "validating" if waiting else "invalid",
        "training_file": file.id,
        "format": {"name": file.format, "read_as": FORMATS[file.format].read_as} if file.format else None,
        "message": file.status_details,
        **{
            name: found.get(name)
            for name in ("rows", "problems", "problem_count", "problem_kinds", "complete")
        },
    }
