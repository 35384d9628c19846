"""Reports on the wire."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from app.domain.conversion import FORMATS
from app.domain.frozen import Frozen
from app.domain.job import State
from app.domain.row_risks import EDGES, Visibility, bound_beta, choose_shown, tells_no_score
from app.domain.scopes import Scope
from app.files.schemas import file_to_wire
from app.jobs.schemas import job_to_wire
from app.models.base_model import Critic
from app.models.file import File
from app.models.job import Job
from app.models.report import Report, reading_of

DATASET_REPORT = "dataset_report"
ESTIMATE = "fine_tuning.job.estimate"
SCOPE_OF = {DATASET_REPORT: Scope.FILES_READ, ESTIMATE: Scope.JOBS_WRITE}
"""What a key needs to ask for a report of each kind, and to see it."""

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


def kind_of(report: Report) -> str:
    """Return what was asked for: a dataset's report, as before there were kinds, or the estimate of a job."""
    kind: str = report.work.args.get("kind", DATASET_REPORT)
    return kind


def report_to_wire(
    report: Report, *, visibility: Visibility, critics: Sequence[Critic], time: dict[str, Any]
) -> dict[str, Any]:
    """Return a report as far as it is made; of the risks what the operator's policy lets be seen."""
    args = report.work.args
    head: dict[str, Any] = {
        "id": report.id,
        "object": kind_of(report),
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
    shown = choose_shown(body.pop("by_visibility"), visibility, _asked_threshold(args))
    failed = body.pop("risk_failed", None)
    bounds = None
    if visibility == "bucketed" and shown["risk"] is not None and shown["expected_beta_mean"] is not None:
        bounds = bound_beta(args["spec"]["safety"], shown["risk"]["distribution"])
    return {
        **head,
        **body,
        "safety": args["spec"]["safety"],
        "risk": {
            "visibility": visibility,
            "critic": critic_to_wire(critics, reading_of(args)),
            "note": _note(args, visibility, measured=reading_of(args) is not None),
            "rows_failed": failed,
            **(shown["risk"] or {}),
        },
        "training": {
            **body["training"],
            "steps": shown["steps"],
            "expected_beta_mean": shown["expected_beta_mean"],
            "expected_beta_bounds": bounds,
            "time": time,
        },
    }


def leave_texts_out(wire: dict[str, Any]) -> None:
    """Take from a report what is text of the data, for a key that may not read files."""
    if "preview" in wire:
        wire["preview"] = []
    for row in wire.get("risk", {}).get("riskiest") or ():
        row.pop("text", None)


def critic_to_wire(critics: Sequence[Critic], reading: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return who measured, how that was combined, and how good each one is: a risk number is a critic's estimate."""
    found = [
        {
            "id": critic.id,
            "category": critic.category,
            "sha256": critic.digest,
            "quality": {name: critic.report.get(name) for name in ("auroc", "tpr_at_1_percent_fpr")},
        }
        for critic in critics
    ]
    if not found or reading is None or reading["type"] != "combined":
        return next(iter(found), None)
    parts = iter(found)
    shown = [next(parts) if part["type"] == "activation" else part for part in reading["critics"]]
    return {"id": "combined", "rule": reading["rule"], "weights": reading["weights"], "critics": shown}


def _asked_threshold(args: dict[str, Any]) -> object:
    # Of a report from before it was kept, only what the threshold came to is known.
    return args.get("asked_threshold", args["spec"]["safety"].get("threshold"))


def _note(args: dict[str, Any], visibility: Visibility, *, measured: bool) -> str | None:
    wanted = args["spec"]["safety"].get("critic") or {}
    if wanted.get("type") == "constant":
        return "the job's critic is a constant: every row has the same risk"
    if not measured:
        return "nothing measured the rows: no critic was fitted for this base model, or the report was asked for without"
    if visibility == "none":
        return "the operator's policy shows no risks of rows"
    notes = []
    if "judge" in (wanted.get("type"), *(part["type"] for part in wanted.get("critics", ()))):
        notes.append(
            "read by activation critics alone: a report asks no judge, so that a job's own risks may be higher"
        )
    if visibility == "bucketed" and not tells_no_score(_asked_threshold(args)):
        edges = ", ".join(f"{edge:g}" for edge in EDGES[:-1])
        notes.append(
            "the operator's policy shows risks by bucket: treatments, and the steps that dropped rows save, are shown for"
            f" the threshold auto or one of {edges}"
        )
    return "; ".join(notes) or None


def exclusion_to_wire(file: File, job: Job | None, critics: Sequence[Critic]) -> dict[str, Any]:
    """Return the file that was made without some rows, and the job that was run again on it."""
    return {
        "object": "file.exclusion",
        "file": file_to_wire(file),
        "job": job_to_wire(job, critics) if job else None,
    }


def unchecked_to_wire(file: File) -> dict[str, Any]:
    """Return the report on a file that cannot be trained on, or is not known to be good yet."""
    waiting = file.status == "uploaded"
    found = file.findings or {}
    return {
        "object": DATASET_REPORT,
        "status": "validating" if waiting else "invalid",
        "training_file": file.id,
        "format": {"name": file.format, "read_as": FORMATS[file.format].read_as} if file.format else None,
        "message": file.status_details,
        **{
            name: found.get(name)
            for name in ("rows", "problems", "problem_count", "problem_kinds", "complete")
        },
    }
