"""Erasure of a dataset: its key goes, and with it what the record's digests of its rows could tell anybody."""

from typing import Any

from sqlalchemy import text, update
from sqlalchemy.orm import Session

from app.auth import Caller
from app.domain.job import TERMINAL, State
from app.domain.ledger import digest_of
from app.errors import Conflict, Gone, InvalidRequest, NotFound
from app.files import repository
from app.files.service import DATA, TRAINING, check_unneeded
from app.models.base import utc_now
from app.models.file import File
from app.models.upload import Upload
from app.notary.repository import add_event
from app.projects.repository import get_project
from app.retention.repository import list_reports_on

ERASED_EVENT = "dataset.erased"
KEY_READ_EVENT = "dataset.key_read"
ERASED_NAME = "erased"
"""The name of an erased file, because its own may say whose data it was."""


def erase_file(session: Session, caller: Caller, file_id: str) -> dict[str, Any]:
    """Erase a file, deleted before or not, and return what is left of it. Once erased, it stays so.

    Raises NotFound, InvalidRequest for files that are no data, and Conflict while something needs it or a legal hold keeps it.
    """
    # Whoever places a hold locks the project too, and so comes before this or after it.
    get_project(session, caller.project_id, lock=True)
    file = _find(session, caller, file_id)
    if file.purpose not in (TRAINING, DATA):
        raise InvalidRequest(
            f"{file_id} has the purpose {file.purpose!r}; only data can be erased. Delete it instead",
            param="file_id",
        )
    if file.erased_at is None:
        _check_free(session, file)
        _erase(session, file)
        add_event(session, ERASED_EVENT, actor=caller.key_id, subject=file.id, sha256=file.sha256)
        session.flush()
    return _describe(session, file)


def read_key(session: Session, caller: Caller, file_id: str) -> dict[str, Any]:
    """Return the key of a file's commitments, and tell the log. Raises NotFound, and Gone where it was erased."""
    file = _find(session, caller, file_id)
    if file.erased_at is not None:
        raise Gone(
            f"{file_id} was erased on {file.erased_at:%Y-%m-%d}, and its key with it; nothing on record can be compared with"
            " its rows any more",
            code="erased",
        )
    add_event(session, KEY_READ_EVENT, actor=caller.key_id, subject=file.id)
    return {"id": file.id, "object": "file.commitment_key", "key": file.commitment_key.hex()}


def _find(session: Session, caller: Caller, file_id: str) -> File:
    file = session.get(File, file_id, with_for_update=True)
    if file is None or file.project_id != caller.project_id:
        raise NotFound(f"no file has the id {file_id!r} in this project", param="file_id")
    return file


def _check_free(session: Session, file: File) -> None:
    check_unneeded(session, file)
    job_id = repository.find_unfinished_job(session, file.id)
    if job_id is not None:
        raise Conflict(
            f"the job {job_id} still needs the file {file.id}; cancel the job, or erase the file when it has ended",
            code="file_in_use",
        )
    evaluation_id = repository.find_evaluation_on(session, file)
    if evaluation_id is not None:
        raise Conflict(
            f"the evaluation {evaluation_id} reads {file.id}; cancel it, or erase the file when it has ended",
            code="file_in_use",
        )
    made = [
        report.id for report in list_reports_on(session, file.id) if State(report.work.state) not in TERMINAL
    ]
    if made or file.status == "uploaded":
        raise Conflict(
            f"{file.id} is being {'read for the report ' + made[0] if made else 'checked'}; erase it when that is done",
            code="file_in_use",
        )


def _erase(session: Session, file: File) -> None:
    if session.get_bind().dialect.name == "sqlite":
        # Else the bytes stay in the database's file until something is written over them.
        session.execute(text("PRAGMA secure_delete = ON"))
    now = utc_now()
    file.commitment_key = b""
    file.filename = ERASED_NAME
    session.execute(update(Upload).where(Upload.file_id == file.id).values(filename=ERASED_NAME))
    file.status_details = file.findings = None
    file.deleted_at = file.deleted_at or now
    file.erased_at = now
    for report in list_reports_on(session, file.id):
        report.body = report.scores = None
        # The same bytes, uploaded again, get a report of their own.
        report.digest = digest_of([report.digest, report.id])


def _describe(session: Session, file: File) -> dict[str, Any]:
    erased_at = file.erased_at
    if erased_at is None:
        raise AssertionError("described before it was erased")
    return {
        "id": file.id,
        "object": "file.erasure",
        "erased": True,
        "erased_at": int(erased_at.timestamp()),
        "sha256": file.sha256,
        "same_bytes": repository.list_twins(session, file),
        "derived_files": repository.list_derived(session, file),
        "models": repository.list_models_of(session, file),
        "later_models": repository.list_later_models(session, file),
        "replies_files": repository.list_replies_on(session, file),
    }
