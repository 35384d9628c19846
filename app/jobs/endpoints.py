"""/v1/fine_tuning/jobs"""

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.audit.service import build_evidence
from app.dependencies import CallerDep, PolicyDep, ReadSessionDep, SessionDep, SettingsDep
from app.domain.risk_curve import build_curve, downsample, to_csv
from app.downloads import send_stored
from app.errors import Conflict
from app.jobs import repository, service
from app.jobs.charts import render_curve
from app.jobs.schemas import (
    JobCreate,
    checkpoint_to_wire,
    critic_to_wire,
    describe_critic,
    event_to_wire,
    job_to_wire,
)
from app.pages import build_page

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

After = Annotated[str | None, Query()]
Limit = Annotated[int, Query(ge=1, le=100)]
ATTACHMENT = {"x-content-type-options": "nosniff"}


@router.post("")
def create_job(
    caller: CallerDep, session: SessionDep, policy: PolicyDep, settings: SettingsDep, body: JobCreate
) -> dict[str, Any]:
    """Create a fine-tuning job."""
    job = service.create_job(session, caller, *policy, body, judge_model=settings.judge_model)
    return job_to_wire(job, service.get_job_critic(session, job))


@router.get("")
def list_jobs(
    request: Request, caller: CallerDep, session: ReadSessionDep, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """List jobs, newest first; `metadata[key]=value` filters."""
    metadata = {
        match[1]: value
        for name, value in request.query_params.items()
        if (match := re.fullmatch(r"metadata\[(.+)\]", name))
    }
    jobs = repository.list_jobs(session, caller.project_id, after=after, limit=limit, metadata=metadata)
    return build_page([job_to_wire(job, service.get_job_critic(session, job)) for job in jobs], limit)


@router.get("/{job_id}")
def retrieve_job(caller: CallerDep, session: ReadSessionDep, job_id: str) -> dict[str, Any]:
    """Return a job."""
    job = service.get_job(session, caller.project_id, job_id)
    return job_to_wire(job, service.get_job_critic(session, job))


@router.post("/{job_id}/cancel")
def cancel_job(caller: CallerDep, session: SessionDep, job_id: str) -> dict[str, Any]:
    """Cancel a job."""
    job = service.cancel_job(session, caller, job_id)
    return job_to_wire(job, service.get_job_critic(session, job))


@router.get("/{job_id}/events")
def list_events(
    caller: CallerDep, session: ReadSessionDep, job_id: str, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """List a job's events, newest first."""
    job = service.get_job(session, caller.project_id, job_id)
    events = repository.list_events(session, job, after=after, limit=limit)
    return build_page([event_to_wire(event) for event in events], limit)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    caller: CallerDep, session: ReadSessionDep, job_id: str, after: After = None, limit: Limit = 10
) -> dict[str, Any]:
    """List a job's checkpoints, newest first."""
    job = service.get_job(session, caller.project_id, job_id)
    checkpoints = repository.list_named_checkpoints(session, job, after=after, limit=limit)
    return build_page([checkpoint_to_wire(checkpoint) for checkpoint in checkpoints], limit)


@router.get("/{job_id}/steps")
def list_steps(
    caller: CallerDep,
    session: ReadSessionDep,
    job_id: str,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=10000)] = 1000,
) -> dict[str, Any]:
    """List the lossless step records after the step `after`, in order."""
    job = service.get_job(session, caller.project_id, job_id)
    steps = repository.list_steps(session, job, after=after, limit=limit + 1)
    data = [{**step.record, "validation": step.validation} for step in steps[:limit]]
    return {"object": "list", "data": data, "has_more": len(steps) > limit}


@router.get("/{job_id}/risk")
def retrieve_risk(
    caller: CallerDep,
    session: ReadSessionDep,
    job_id: str,
    max_points: Annotated[int, Query(ge=4, le=20000)] = 2000,
    format: Literal["json", "csv", "png", "svg"] = "json",
) -> Any:
    """Return the risk curve, down-sampled with its extremes kept."""
    job = service.get_job(session, caller.project_id, job_id)
    records = [step.record for step in repository.list_steps(session, job, after=0, limit=None)]
    curve = build_curve(records)
    curve["rows"] = downsample(curve["rows"], max_points)
    critic = critic_to_wire(job, service.get_job_critic(session, job))
    if format == "csv":
        return Response(to_csv(curve), media_type="text/csv")
    if format != "json":
        title = f"{job.id} · {job.request['safety']['method']} · {job.model}"
        media_type = "image/png" if format == "png" else "image/svg+xml"
        image = render_curve(curve, title=title, subtitle=describe_critic(critic), image=format)
        return Response(image, media_type=media_type, headers=ATTACHMENT)
    return {
        "object": "risk_curve",
        "job": job.id,
        "critic": critic,
        **curve,
        "total_steps": job.total_steps,
    }


@router.get("/{job_id}/adapter")
def retrieve_adapter(
    request: Request,
    caller: CallerDep,
    session: ReadSessionDep,
    settings: SettingsDep,
    job_id: str,
) -> Response:
    """Return the adapter as one zip of an ordinary PEFT folder."""
    job = service.get_job(session, caller.project_id, job_id)
    sha256 = job.adapter_sha256
    if job.work.state != "succeeded" or sha256 is None:
        raise Conflict(
            f"the job {job.id} has no adapter to download: its state is {job.work.state}; an adapter is"
            " released when the job has succeeded",
            code="adapter_not_ready",
        )
    return send_stored(
        request,
        settings.storage,
        sha256,
        media_type="application/zip",
        headers={"content-disposition": f'attachment; filename="{job.id}-adapter.zip"'},
    )


@router.get("/{job_id}/evidence")
def retrieve_evidence(caller: CallerDep, session: ReadSessionDep, job_id: str) -> Response:
    """Return the bundle for `tether verify`."""
    job = service.get_job(session, caller.project_id, job_id)
    return Response(
        build_evidence(session, job.id),
        media_type="application/zip",
        headers={
            **ATTACHMENT,
            "content-disposition": f'attachment; filename="{job.id}-evidence.zip"',
        },
    )
