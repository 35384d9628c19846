"""/v1/log, and the receipt of a job"""

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Path, Response
from sqlalchemy.orm import Session

from app.audit.service import prove_heads
from app.dependencies import CallerDep, ReadSessionDep, needs
from app.domain.installation_log import format_receipt, parse_head_line
from app.domain.scopes import Scope
from app.domain.tiles import MAX_LEVEL, build_entries, build_tile, leaves_of, parse_place
from app.errors import NotFound
from app.jobs.service import get_job
from app.models.installation_log import LogCheckpoint
from app.notary import repository

router = APIRouter(prefix="/v1", tags=["evidence"])

LogNumber = Annotated[int, Path(ge=1, lt=2**31)]
NOT_SIGNED = "try again after TETHER_HEAD_INTERVAL_S; if it stays so, /readyz and the notary's log say why"


# An auditor's key has one of the two: a project's own, or the one that reads the whole log.
@router.get("/log/checkpoint", dependencies=[needs(Scope.AUDIT_READ, Scope.LOG_READ)])
def retrieve_checkpoint(session: ReadSessionDep) -> Response:
    """Return the newest signed checkpoint of the installation's log, as a C2SP note. Keep copies of it elsewhere."""
    log = repository.get_log(session)
    return _send_checkpoint(repository.get_checkpoint(session, log.number) if log else None)


# A log of before a fork keeps its number and its tiles, so that what is cached of them stays right for ever.
@router.get("/log/{log_number}/checkpoint", dependencies=[needs(Scope.AUDIT_READ, Scope.LOG_READ)])
def retrieve_log_checkpoint(session: ReadSessionDep, log_number: LogNumber) -> Response:
    """Return the newest signed checkpoint of one log: 1 is the first, and every fork has the next number."""
    return _send_checkpoint(repository.get_checkpoint(session, log_number))


@router.get("/log/{log_number}/tile/entries/{tile:path}", dependencies=[needs(Scope.LOG_READ)])
def retrieve_entries(session: ReadSessionDep, log_number: LogNumber, tile: str) -> Response:
    """Return up to 256 leaves of a log, as C2SP tlog-tiles has them: `000` are the first, `000.p/8` the first eight."""
    return _send_tile(build_entries(_read_leaves(session, log_number, 0, tile)))


@router.get("/log/{log_number}/tile/{level}/{tile:path}", dependencies=[needs(Scope.LOG_READ)])
def retrieve_tile(
    session: ReadSessionDep, log_number: LogNumber, level: Annotated[int, Path(ge=0, le=MAX_LEVEL)], tile: str
) -> Response:
    """Return up to 256 hashes of a log's tree, as C2SP tlog-tiles has them."""
    return _send_tile(build_tile(level, _read_leaves(session, log_number, level, tile)))


def _send_checkpoint(checkpoint: LogCheckpoint | None) -> Response:
    if checkpoint is None:
        raise NotFound(f"the notary has signed nothing yet; {NOT_SIGNED}", code="not_signed")
    return Response(
        checkpoint.note, media_type="text/plain; charset=utf-8", headers={"cache-control": "no-cache"}
    )


def _read_leaves(session: Session, log: int, level: int, tile: str) -> Iterator[bytes]:
    """Return the leaves that a tile is made of. Raises NotFound unless all of them are signed."""
    place, checkpoint = parse_place(tile), repository.get_checkpoint(session, log)
    leaves = None if place is None else leaves_of(level, place)
    if leaves is None or checkpoint is None or leaves.stop > checkpoint.size:
        signed = 0 if checkpoint is None else checkpoint.size
        raise NotFound(
            f"the log {log} has no such tile: {signed} of its leaves are signed; its checkpoint says so at"
            f" /v1/log/{log}/checkpoint",
            code="no_such_tile",
        )
    return repository.iterate_log(session, log, start=leaves.start, end=leaves.stop)


def _send_tile(tile: bytes) -> Response:
    headers = {"cache-control": "private, max-age=31536000, immutable", "x-content-type-options": "nosniff"}
    return Response(tile, media_type="application/octet-stream", headers=headers)


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
