"""/v1/log, and the receipt of a job"""

from fastapi import APIRouter, Response

from app.audit.service import prove_heads
from app.dependencies import CallerDep, ReadSessionDep, needs
from app.domain.installation_log import format_receipt, parse_head_line
from app.domain.scopes import Scope
from app.errors import NotFound
from app.jobs.service import get_job
from app.notary import repository

router = APIRouter(prefix="/v1", tags=["evidence"])

NOT_SIGNED = "try again after TETHER_HEAD_INTERVAL_S; if it stays so, /readyz and the notary's log say why"


@router.get("/log/checkpoint", dependencies=[needs(Scope.AUDIT_READ)])
def retrieve_checkpoint(session: ReadSessionDep) -> Response:
    """Return the newest signed checkpoint of the installation's log, as a C2SP note. Keep copies of it elsewhere."""
    log = repository.get_log(session)
    checkpoint = repository.get_checkpoint(session, log.number) if log else None
    if checkpoint is None:
        raise NotFound(f"the notary has signed nothing yet; {NOT_SIGNED}", code="not_signed")
    return Response(checkpoint.note, media_type="text/plain; charset=utf-8")


@router.get("/fine_tuning/jobs/{job_id}/receipt", dependencies=[needs(Scope.AUDIT_READ)])
def retrieve_receipt(caller: CallerDep, session: ReadSessionDep, job_id: str) -> Response:
    """Return the proof that the job's newest head is under a signed checkpoint, in the form of C2SP tlog-proof."""
    job = get_job(session, caller.project_id, job_id)
    proof = prove_heads(session, job.id)
    if proof is None:
        raise NotFound(
            f"nothing of {job.id} is under a signed checkpoint yet; {NOT_SIGNED}", code="not_signed"
        )
    receipt = format_receipt(parse_head_line(proof.heads[-1]), proof.checkpoint)
    disposition = f'attachment; filename="{job.id}.tlog-proof"'
    return Response(
        receipt, media_type="text/plain; charset=utf-8", headers={"content-disposition": disposition}
    )
