"""What is said of a job's adapter, for people and for other tools."""

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse

from app.dependencies import CallerDep, ReadSessionDep, SettingsDep, needs
from app.domain.scopes import Scope
from app.errors import NotFound
from app.evidence.card import HEADERS, render_card
from app.evidence.facts import gather_facts
from app.jobs.service import get_job
from app.models.attestation import Attestation

DSSE = "application/vnd.dsse.envelope.v1+json"

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["evidence"])


@router.get("/{job_id}/attestation", dependencies=[needs(Scope.AUDIT_READ)])
def retrieve_attestation(caller: CallerDep, session: ReadSessionDep, job_id: str) -> Response:
    """Return the notary's signed statement about the adapter: in-toto Statement v1 in a DSSE envelope."""
    job = get_job(session, caller.project_id, job_id)
    found = session.get(Attestation, job.id)
    if found is None:
        raise NotFound(
            f"nothing is signed about an adapter of {job.id}: its state is {job.work.state}; a statement is signed once its"
            " record is, and for jobs that ended well alone",
            code="not_signed",
        )
    disposition = f'attachment; filename="{job.id}.intoto.json"'
    return Response(found.envelope, media_type=DSSE, headers={"content-disposition": disposition})


@router.get("/{job_id}/model_card", dependencies=[needs(Scope.AUDIT_READ)])
def retrieve_model_card(
    caller: CallerDep, session: ReadSessionDep, settings: SettingsDep, job_id: str
) -> HTMLResponse:
    """Return the model card: one page that needs nothing but itself."""
    job = get_job(session, caller.project_id, job_id)
    return HTMLResponse(render_card(gather_facts(session, settings, job)), headers=HEADERS)
