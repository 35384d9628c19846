"""/v1/fine_tuning/jobs"""

import re
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.audit.service import build_evidence
from app.auth import Caller
from app.base_models.weights import find_adapter
from app.charts.render import render_curve
from app.conditional import ReplyCache, answer, encode, etag_of
from app.database import read_only
from app.dependencies import (
    CallerDep,
    DatabaseDep,
    PolicyDep,
    ReadSessionDep,
    SessionDep,
    SettingsDep,
    WakerDep,
    needs,
)
from app.domain.job import State
from app.domain.risk_curve import build_packed_curve, to_csv
from app.domain.scopes import Scope
from app.downloads import send_stored
from app.errors import InvalidRequest
from app.evaluations.repository import find_results
from app.evidence.documents import build_documents
from app.files.repository import get_file
from app.idempotency import AttemptDep, once
from app.integrations.service import check_integrations, start_exports
from app.jobs import approval, examples, repository, service
from app.jobs.live import Reply, find_start
from app.jobs.schemas import (
    Decision,
    JobCreate,
    Metadata,
    checkpoint_to_wire,
    critic_to_wire,
    describe_critic,
    event_to_wire,
    job_to_wire,
)
from app.jobs.stream import EventStream, follow_job, reply_when_changed
from app.models.job import Job
from app.notary.downloads import note_download
from app.pages import build_page
from app.policies.service import policy_in_force
from app.settings import Settings

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

After = Annotated[str | None, Query()]
Limit = Annotated[int, Query(ge=1, le=100)]
IfNoneMatch = Annotated[str | None, Header()]
Wait = Annotated[float, Query(ge=0, le=60)]
StepNumber = Annotated[int, Query(ge=0, lt=2**63)]
CURVE_TYPES = {"json": "application/json", "csv": "text/csv", "png": "image/png", "svg": "image/svg+xml"}
_METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)
ATTACHMENT = {"x-content-type-options": "nosniff"}


@router.post("", dependencies=[needs(Scope.JOBS_WRITE)])
def create_job(
    caller: CallerDep,
    session: SessionDep,
    policy: PolicyDep,
    settings: SettingsDep,
    attempt: AttemptDep,
    body: JobCreate,
) -> dict[str, Any]:
    """Create a fine-tuning job. The same request with the same Idempotency-Key gives the same job for a day."""

    def create() -> dict[str, Any]:
        check_integrations(settings, body.integrations)
        in_force = policy_in_force(session, caller.project_id, policy)
        job = service.create_job(session, caller, *in_force, body, settings=settings)
        start_exports(session, job, body.integrations)
        return job_to_wire(job, service.get_job_critics(session, job))

    return once(session, attempt, body, create)


@router.get("", dependencies=[needs(Scope.JOBS_READ)])
def list_jobs(
    request: Request,
    caller: CallerDep,
    session: ReadSessionDep,
    after: After = None,
    limit: Limit = 20,
    metadata: Literal["null"] | None = None,
    state: Annotated[list[State], Query()] = [],  # noqa: B006 - FastAPI gives each request a list of its own.
) -> dict[str, Any]:
    """List jobs, newest first; `metadata[key]=value` filters, and `metadata=null` keeps those that have none.

    `state` keeps those in one of these finer states, as `safety.state` has it.
    """
    jobs = repository.list_jobs(
        session,
        caller.project_id,
        after=after,
        limit=limit,
        metadata=_read_metadata(request),
        without_metadata=metadata is not None,
        states=state,
    )
    return build_page([job_to_wire(job, service.get_job_critics(session, job)) for job in jobs], limit)


def _read_metadata(request: Request) -> dict[str, str]:
    wanted = {
        match[1]: value
        for name, value in request.query_params.items()
        if (match := re.fullmatch(r"metadata\[(.*)\]", name, re.DOTALL))
    }
    try:
        return _METADATA.validate_python(wanted)
    except ValidationError as error:
        # Nothing that a job can have: the same limits hold where it is created.
        raise InvalidRequest(f"metadata: {error.errors()[0]['msg']}", param="metadata") from None


# What is asked most often of all has few dependencies: each costs a request as much as reading its job does.
@router.get("/{job_id}")
async def retrieve_job(
    request: Request,
    caller: Annotated[Caller, needs(Scope.JOBS_READ)],
    job_id: str,
    if_none_match: IfNoneMatch = None,
    wait: Wait = 0,
) -> Response:
    """Return a job; with its ETag in If-None-Match, 304 where it is the same, after up to `wait` seconds."""
    state = request.app.state

    async def make() -> Response:
        job: Reply | None = await state.jobs.get((caller.project_id, job_id))
        if job is None:
            raise service.no_job(job_id)
        return answer(job.etag, if_none_match, "application/json", lambda: job.body)

    return await reply_when_changed(request, state.waker, caller, job_id, wait, make)


@router.get("/{job_id}/stream", dependencies=[needs(Scope.JOBS_READ)])
async def stream_job(
    caller: CallerDep,
    database: DatabaseDep,
    waker: WakerDep,
    job_id: str,
    after: After = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Send a job's state, events and steps as they come (server-sent events), after an event where one is named."""
    start = await run_in_threadpool(find_start, database, caller.project_id, job_id, last_event_id or after)
    return EventStream(follow_job(database, waker, caller, job_id, start))


@router.post("/{job_id}/cancel", dependencies=[needs(Scope.JOBS_WRITE)])
def cancel_job(caller: CallerDep, session: SessionDep, job_id: str) -> dict[str, Any]:
    """Cancel a job."""
    job = service.cancel_job(session, caller, job_id)
    return job_to_wire(job, service.get_job_critics(session, job))


@router.post("/{job_id}/pause", dependencies=[needs(Scope.JOBS_WRITE)])
def pause_job(caller: CallerDep, session: SessionDep, job_id: str) -> dict[str, Any]:
    """Pause a job: it keeps its last checkpoint and waits until it is resumed."""
    job = service.pause_job(session, caller, job_id)
    return job_to_wire(job, service.get_job_critics(session, job))


@router.post("/{job_id}/resume", dependencies=[needs(Scope.JOBS_WRITE)])
def resume_job(caller: CallerDep, session: SessionDep, job_id: str) -> dict[str, Any]:
    """Resume a paused job; it goes on where it was."""
    job = service.resume_job(session, caller, job_id)
    return job_to_wire(job, service.get_job_critics(session, job))


@router.post("/{job_id}/release", dependencies=[needs(Scope.JOBS_RELEASE)])
def release_job(caller: CallerDep, session: SessionDep, job_id: str, body: Decision) -> dict[str, Any]:
    """Approve the release of a held job; with the last one needed it succeeds as soon as that is signed."""
    job = service.get_job(session, caller.project_id, job_id)
    approval.release_job(session, caller, job, body.reason)
    return job_to_wire(job, service.get_job_critics(session, job))


@router.post("/{job_id}/reject", dependencies=[needs(Scope.JOBS_RELEASE)])
def reject_job(caller: CallerDep, session: SessionDep, job_id: str, body: Decision) -> dict[str, Any]:
    """Reject a held job: it has failed, and its weights go."""
    job = service.get_job(session, caller.project_id, job_id)
    approval.reject_job(session, caller, job, body.reason)
    return job_to_wire(job, service.get_job_critics(session, job))


@router.get("/{job_id}/events", dependencies=[needs(Scope.JOBS_READ)])
def list_events(
    caller: CallerDep,
    session: ReadSessionDep,
    job_id: str,
    after: After = None,
    limit: Limit = 20,
    type: Literal["message", "metrics"] | None = None,
) -> dict[str, Any]:
    """List a job's events, newest first; with `type`, those that are messages or those with the numbers of a step."""
    job = service.get_job(session, caller.project_id, job_id)
    events = repository.list_events(session, job, after=after, limit=limit, type=type)
    return build_page([event_to_wire(event) for event in events], limit)


@router.get("/{job_id}/checkpoints", dependencies=[needs(Scope.JOBS_READ)])
def list_checkpoints(
    caller: CallerDep, session: ReadSessionDep, job_id: str, after: After = None, limit: Limit = 10
) -> dict[str, Any]:
    """List a job's checkpoints, newest first."""
    job = service.get_job(session, caller.project_id, job_id)
    checkpoints = repository.list_named_checkpoints(session, job, after=after, limit=limit)
    found = find_results(session, caller.project_id, [str(each.name) for each in checkpoints])
    data = [checkpoint_to_wire(each, found.get(str(each.name))) for each in checkpoints]
    return build_page(data, limit)


@router.get("/{job_id}/steps", dependencies=[needs(Scope.JOBS_READ)])
def list_steps(
    caller: CallerDep,
    session: ReadSessionDep,
    job_id: str,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=10000)] = 1000,
) -> dict[str, Any]:
    """List the lossless step records after the step `after`, in order."""
    job = service.get_job(session, caller.project_id, job_id)
    service.check_steps_kept(job)
    steps = repository.list_steps(session, job, after=after, limit=limit + 1)
    data = [{**step.record, "validation": step.validation} for step in steps[:limit]]
    return {"object": "list", "data": data, "has_more": len(steps) > limit}


@router.get("/{job_id}/examples", dependencies=[needs(Scope.JOBS_READ)])
def list_examples(
    caller: CallerDep,
    database: DatabaseDep,
    settings: SettingsDep,
    job_id: str,
    sort: examples.Sort = "risk",
    after: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """List the rows that a job learns from, the riskiest first; their texts only for a key that may read files."""
    with read_only(database) as session:
        job = service.get_job(session, caller.project_id, job_id)
        found = examples.list_examples(session, job, sort=sort, after=after, limit=limit)
        file = get_file(session, job.project_id, job.training_file)
    data = found[:limit]
    if Scope.FILES_READ in caller.scopes:
        # A large file takes a while, and no connection to the database waits for it.
        examples.add_texts(settings.storage, None if file is None else file.sha256, data)
    return {"object": "list", "data": data, "has_more": len(found) > limit}


@router.get("/{job_id}/risk", dependencies=[needs(Scope.JOBS_READ)])
async def retrieve_risk(
    request: Request,
    caller: CallerDep,
    database: DatabaseDep,
    waker: WakerDep,
    job_id: str,
    max_points: Annotated[int, Query(ge=4, le=20000)] = 2000,
    from_step: StepNumber | None = None,
    to_step: StepNumber | None = None,
    format: Literal["json", "csv", "png", "svg"] = "json",
    if_none_match: IfNoneMatch = None,
    wait: Wait = 0,
) -> Response:
    """Return the risk curve, down-sampled with its extremes kept; ETag and `wait` are as a job's.

    `from_step` and `to_step`, both included, show a part of it.
    """
    cache: ReplyCache = request.app.state.curves

    def make() -> Response:
        with read_only(database) as session:
            job = service.get_job(session, caller.project_id, job_id)
            service.check_steps_kept(job)
            # Whatever changes a step is in the ledger, so that its head names the steps as they are.
            etag = etag_of(
                job.id, job.work.ledger_head, job.total_steps, max_points, from_step, to_step, format
            )

            def draw() -> bytes:
                body = cache.get(etag)
                if body is None:
                    body = _draw_curve(session, job, max_points, from_step, to_step, format)
                    cache.put(etag, body)
                return body

            return answer(etag, if_none_match, CURVE_TYPES[format], draw, **ATTACHMENT)

    return await reply_when_changed(request, waker, caller, job_id, wait, partial(run_in_threadpool, make))


def _draw_curve(
    session: Session,
    job: Job,
    max_points: int,
    from_step: int | None,
    to_step: int | None,
    format: Literal["json", "csv", "png", "svg"],
) -> bytes:
    pieces, records = repository.load_curve(session, job)
    curve = build_packed_curve(pieces, records, max_points, from_step=from_step, to_step=to_step)
    if format == "csv":
        return to_csv(curve).encode("utf-8")
    critic = critic_to_wire(job, service.get_job_critics(session, job))
    marks = repository.list_marks(session, job)
    if format == "json":
        head = {"object": "risk_curve", "job": job.id, "critic": critic}
        return encode({**head, **curve, "total_steps": job.total_steps, "marks": marks})
    title = f"{job.id} · {job.request['safety']['method']} · {job.model}"
    return render_curve(curve, marks, title=title, subtitle=describe_critic(critic), image=format)


@router.get("/{job_id}/adapter", dependencies=[needs(Scope.ARTIFACTS_READ)])
def retrieve_adapter(
    request: Request,
    caller: CallerDep,
    database: DatabaseDep,
    settings: SettingsDep,
    job_id: str,
) -> Response:
    """Return the adapter as one zip of an ordinary PEFT folder."""
    with read_only(database) as session:
        sha256 = find_adapter(session, caller.project_id, job_id)
    note_download(database, key_id=caller.key_id, subject=job_id, sha256=sha256)
    return send_adapter(request, settings, sha256, job_id)


@router.get("/{job_id}/checkpoints/{checkpoint_id}/adapter", dependencies=[needs(Scope.ARTIFACTS_READ)])
def retrieve_checkpoint_adapter(
    request: Request,
    caller: CallerDep,
    database: DatabaseDep,
    settings: SettingsDep,
    job_id: str,
    checkpoint_id: str,
) -> Response:
    """Return the adapter as it was at a checkpoint, once the job has succeeded."""
    with read_only(database) as session:
        sha256 = find_adapter(session, caller.project_id, job_id, checkpoint_id)
    note_download(database, key_id=caller.key_id, subject=checkpoint_id, sha256=sha256)
    return send_adapter(request, settings, sha256, checkpoint_id)


def send_adapter(request: Request, settings: Settings, sha256: str, of: str) -> Response:
    """Return the response that carries an adapter."""
    return send_stored(
        request,
        settings.storage,
        sha256,
        media_type="application/zip",
        headers={"content-disposition": f'attachment; filename="{of}-adapter.zip"'},
    )


@router.get("/{job_id}/evidence", dependencies=[needs(Scope.AUDIT_READ)])
def retrieve_evidence(
    caller: CallerDep, session: ReadSessionDep, settings: SettingsDep, job_id: str
) -> Response:
    """Return the bundle for `tether verify`, with the documents that are made of it."""
    job = service.get_job(session, caller.project_id, job_id)
    return Response(
        build_evidence(session, job.id, build_documents(session, settings, job)),
        media_type="application/zip",
        headers={
            **ATTACHMENT,
            "content-disposition": f'attachment; filename="{job.id}-evidence.zip"',
        },
    )
