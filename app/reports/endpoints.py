"""/v1/files/{file_id}/report, /v1/files/{file_id}/exclude, /v1/reports, /v1/fine_tuning/jobs/estimate"""

from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import ValidationError
from sqlalchemy.orm import Session

from app.auth import Caller, require
from app.dependencies import CallerDep, DatabaseDep, PolicyDep, SessionDep, SettingsDep, needs
from app.domain.safety_policy import SafetyPolicy
from app.domain.scopes import Scope
from app.errors import InvalidRequest
from app.files.service import TRAINING, get_file
from app.idempotency import AttemptDep
from app.jobs.schemas import JobCreate
from app.models.report import Report
from app.policies.service import policy_in_force
from app.reports import service
from app.reports.html import HEADERS, render_report
from app.reports.schemas import (
    DATASET_REPORT,
    ESTIMATE,
    SCOPE_OF,
    Exclusion,
    kind_of,
    leave_texts_out,
    report_to_wire,
    unchecked_to_wire,
)

router = APIRouter(tags=["reports"])

RETRY_AFTER_S = 2
Format = Literal["json", "html"]


@router.get("/v1/files/{file_id}/report", dependencies=[needs(SCOPE_OF[DATASET_REPORT])])
def retrieve_file_report(
    request: Request,
    caller: CallerDep,
    session: SessionDep,
    policy: PolicyDep,
    settings: SettingsDep,
    file_id: str,
    model: str,
    safety: str = "default",
    validation_file: str | None = None,
    max_seq_length: Annotated[int | None, Query(ge=8, le=131072)] = None,
    overlength: Literal["error", "truncate", "drop"] = "error",
    risk: bool = True,
    retry: bool = False,
    format: Format = "json",
) -> Response:
    """Return the report on a training file; 202 while it is being made."""
    file = get_file(session, caller.project_id, file_id)
    if file.purpose == TRAINING and file.status != "processed":
        waiting = file.status == "uploaded"
        again = f"{request.url.path}?{urlencode(request.query_params.multi_items())}"
        return _reply(unchecked_to_wire(file), again if waiting else None)
    try:
        body = JobCreate.model_validate(
            {
                "model": model,
                "training_file": file_id,
                "validation_file": validation_file,
                "seed": 0,
                "safety": safety,
                "training": {"max_seq_length": max_seq_length, "overlength": overlength},
            }
        )
    except ValidationError as error:
        # The only field that is not checked by its type.
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"safety: {message}", param="safety") from None
    in_force, _ = policy_in_force(session, caller.project_id, policy)
    report = service.request_report(
        session,
        caller,
        in_force,
        body,
        kind=DATASET_REPORT,
        judge_model=settings.judge_model,
        risk=risk,
        retry=retry,
    )
    return _show(session, caller, in_force, report, format)


@router.get("/v1/reports/{report_id}", dependencies=[needs(*SCOPE_OF.values())])
def retrieve_report(
    caller: CallerDep, session: SessionDep, policy: PolicyDep, report_id: str, format: Format = "json"
) -> Response:
    """Return a report by its id; 202 while it is being made."""
    report = service.get_report(session, caller.project_id, report_id)
    require(caller, SCOPE_OF[kind_of(report)])
    return _show(session, caller, policy_in_force(session, caller.project_id, policy)[0], report, format)


@router.post("/v1/fine_tuning/jobs/estimate", dependencies=[needs(SCOPE_OF[ESTIMATE])])
def estimate_job(
    caller: CallerDep,
    session: SessionDep,
    policy: PolicyDep,
    settings: SettingsDep,
    body: JobCreate,
    retry: bool = False,
) -> Response:
    """Return what a job of this body would be, without creating it; 202 while it is being worked out."""
    in_force, _ = policy_in_force(session, caller.project_id, policy)
    report = service.request_report(
        session, caller, in_force, body, kind=ESTIMATE, judge_model=settings.judge_model, retry=retry
    )
    return _show(session, caller, in_force, report, "json")


@router.post("/v1/files/{file_id}/exclude", dependencies=[needs(Scope.FILES_WRITE)])
def exclude_rows(
    caller: CallerDep,
    database: DatabaseDep,
    policy: PolicyDep,
    settings: SettingsDep,
    attempt: AttemptDep,
    file_id: str,
    body: Exclusion,
) -> dict[str, Any]:
    """Make a new file without some rows, and run a job again on it where one is named; once for an Idempotency-Key."""
    if body.run_again is not None:
        # The new job shows what the old one was asked for.
        require(caller, Scope.JOBS_READ)
        require(caller, Scope.JOBS_WRITE)
    return service.exclude_rows(database, settings, caller, policy, attempt, file_id, body)


def _show(session: Session, caller: Caller, policy: SafetyPolicy, report: Report, format: Format) -> Response:
    wire = report_to_wire(
        report,
        visibility=service.read_risks(session, caller, policy, report),
        critics=service.get_report_critics(session, report),
        time=service.estimate_time(session, report),
    )
    if Scope.FILES_READ not in caller.scopes:
        leave_texts_out(wire)
    if format == "html" and report.body is not None:
        file = get_file(session, caller.project_id, wire["training_file"])
        return HTMLResponse(render_report(wire, file.filename), headers=HEADERS)
    return _reply(wire, f"/v1/reports/{report.id}" if wire["status"] == "running" else None)


def _reply(wire: dict[str, Any], location: str | None) -> Response:
    if location is None:
        return JSONResponse(wire)
    return JSONResponse(wire, 202, headers={"location": location, "retry-after": str(RETRY_AFTER_S)})
