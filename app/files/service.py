"""The rules of files: what is checked when, and what is refused."""

import io
import logging
import secrets
from datetime import timedelta
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from sqlalchemy.orm import Session

from app import queue, storage
from app.database import Database, read_only, unit_of_work
from app.domain.dataset import Findings, check_training_lines, read_lines
from app.domain.job import WorkKind
from app.errors import (
    Conflict,
    InvalidRequest,
    InvalidTrainingFile,
    NotFound,
    StorageUnavailable,
    TetherError,
)
from app.files import repository
from app.models.base import new_id, utc_now
from app.models.file import File
from app.models.retention import LegalHold
from app.policies.repository import find_policy_with
from app.quotas.service import take_storage
from app.retention.repository import find_hold_on_file
from app.settings import Settings
from app.work import repository as work_repository

log = logging.getLogger(__name__)

TRAINING = "fine-tune"
RESULTS = "fine-tune-results"
DATA = "user_data"
"""For critics and safety sets. Their rows are checked when they are used, by what they are used for."""


def create_file(
    database: Database,
    settings: Settings,
    *,
    project_id: str,
    filename: str,
    purpose: str,
    stream: BinaryIO,
    expires_after_s: int | None = None,
) -> File:
    """Store an upload. A small training file is checked before; a large one is left to a worker. Others are not.

    Raises InvalidTrainingFile with every problem found, StorageFull where the disk has no room, and then keeps nothing.
    """
    check_purpose(purpose)
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    found = check_small(settings, purpose, size, stream)
    stream.seek(0)
    # Bytes that the project has no room for are not stored first; two files at once are told apart below.
    with read_only(database) as session:
        take_storage(session, settings, project_id, size, lock=False)
    storage.check_room(settings.storage, size, settings.disk_reserve_bytes)
    stored = storage.store_stream(settings.storage, stream, max_bytes=settings.max_file_bytes)
    try:
        with unit_of_work(database) as session:
            take_storage(session, settings, project_id, size)
            return admit_file(
                session,
                project_id=project_id,
                filename=filename,
                purpose=purpose,
                stored=stored,
                found=found,
                expires_after_s=expires_after_s,
            )
    except TetherError:
        note_unwanted(database, project_id, filename, purpose, stored)
        raise


def note_unwanted(
    database: Database, project_id: str, filename: str, purpose: str, stored: storage.Stored
) -> None:
    """Have bytes that were stored for nothing let go as those of a deleted file are: later, unless they are needed."""
    with unit_of_work(database) as session:
        file = add_file(session, project_id=project_id, filename=filename, purpose=purpose, stored=stored)
        file.deleted_at = utc_now()


def check_purpose(purpose: str) -> None:
    """Raise InvalidRequest for a purpose that files of clients do not have here."""
    if purpose not in (TRAINING, DATA):
        raise InvalidRequest(
            f"purpose: found {purpose!r}; this service takes files of the purposes {TRAINING!r} and {DATA!r}",
            param="purpose",
        )


def check_small(settings: Settings, purpose: str, size: int, stream: BinaryIO) -> Findings | None:
    """Return what the check of a training file found that is small enough to be checked at once; None for any other.

    Raises InvalidTrainingFile with every problem found.
    """
    if purpose != TRAINING or size > min(settings.sync_check_bytes, settings.max_file_bytes):
        return None
    found = check_training_lines(read_lines(stream))
    if found.problems:
        raise refuse_rows(found)
    return found


def admit_file(
    session: Session,
    *,
    project_id: str,
    filename: str,
    purpose: str,
    stored: storage.Stored,
    found: Findings | None,
    expires_after_s: int | None,
) -> File:
    """Insert a client's file. A training file whose rows nobody has counted is left to a worker to check."""
    file = add_file(session, project_id=project_id, filename=filename, purpose=purpose, stored=stored)
    if found is not None:
        keep_findings(file, found.to_record())
    if expires_after_s is not None:
        file.expires_at = file.created_at + timedelta(seconds=expires_after_s)
    if purpose == TRAINING and found is None:
        file.status = "uploaded"
        work = work_repository.add_work(
            session,
            kind=WorkKind.VALIDATE_FILE,
            queue="cpu",
            project_id=project_id,
            args={"file": file.id},
        )
        queue.enqueue(session, work.queue, work.id)
    return file


def keep_findings(file: File, record: dict[str, Any]) -> None:
    """Give a training file the status that its check found, `Findings.to_record`."""
    file.rows = None if record["problems"] else record["rows"]
    file.status = "error" if record["problems"] else "processed"
    file.status_details = record["message"]
    file.format = record["format"]
    file.findings = record


def add_file(
    session: Session,
    *,
    project_id: str,
    filename: str,
    purpose: str,
    stored: storage.Stored,
    job_id: str | None = None,
) -> File:
    """Insert the row of a stored file. Its name is a label only and never part of a path.

    A file with a `job_id` is a result of that job, and nobody sees it before the job has succeeded.
    """
    file = File(
        id=new_id("file-"),
        project_id=project_id,
        filename=make_label(filename),
        purpose=purpose,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
        status="processed",
        job_id=job_id,
        commitment_key=secrets.token_bytes(32),
        created_at=utc_now(),
    )
    session.add(file)
    session.flush()
    return file


def make_label(filename: str) -> str:
    """Return the last part of a name, whatever system it comes from."""
    return (PurePosixPath(PureWindowsPath(filename).name).name or "file")[:255]


def refuse_rows(
    found: Findings, file: str = "training file", *, param: str = "file", code: str | None = None
) -> InvalidTrainingFile:
    """Return the error that says what is wrong with a file: the first problems as text, more of them in its fields."""
    headline, shown = found.describe(file)
    return InvalidTrainingFile(headline, problems=shown, param=param, code=code, details=found.to_wire())


def get_data_file(session: Session, project_id: str, file_id: str, *purposes: str) -> File:
    """Return a file that a request names for one of these purposes. Raises NotFound and InvalidRequest."""
    file = repository.get_file(session, project_id, file_id)
    if file is None:
        raise NotFound(
            f"file: no file has the id {file_id!r} in this project", param="file", code="file_not_found"
        )
    if file.purpose not in purposes:
        expected = " or ".join(map(repr, purposes))
        raise InvalidRequest(
            f"file: {file_id} has the purpose {file.purpose!r}; expected {expected}", param="file"
        )
    return file


def get_file(session: Session, project_id: str, file_id: str) -> File:
    """Return a file of the project. Raises NotFound."""
    file = repository.get_file(session, project_id, file_id)
    if file is None:
        raise NotFound(f"no file has the id {file_id!r} in this project", param="file_id")
    return file


def delete_file(session: Session, project_id: str, file_id: str) -> None:
    """Forget a file; its bytes go a while later.

    Raises Conflict while a job that has not ended needs it, a policy names it, or a legal hold keeps it.
    """
    file = get_file(session, project_id, file_id)
    # Whoever stores a policy that names it locks it too: it comes before all of this or after it.
    session.refresh(file, with_for_update=True)
    check_unneeded(session, file)
    job_id = repository.find_unfinished_job(session, file_id)
    if job_id is not None:
        raise Conflict(
            f"the job {job_id} still needs the file {file_id}; cancel the job, or delete the file when it has ended",
            code="file_in_use",
        )
    file.deleted_at = utc_now()


def check_unneeded(session: Session, file: File) -> None:
    """Raise Conflict where a legal hold keeps a file, or the gate of a stored policy evaluates with it."""
    hold = find_hold_on_file(session, file.id)
    if hold is not None:
        raise refuse_held(hold, file.id)
    policy = find_policy_with(session, file.id)
    if policy is not None:
        raise Conflict(
            f"the gate of the policy {policy.name!r}, version {policy.version} ({policy.id}), evaluates with the prompts in"
            f" {file.id}; a stored policy stays as it is, and so do they",
            code="file_in_use",
        )


def refuse_held(hold: LegalHold, what: str) -> Conflict:
    """Return the error for whoever would remove what a legal hold keeps."""
    return Conflict(
        f"the legal hold {hold.id} keeps {what} as it is; ask the operator, who can end it with: tether ledger release",
        code="legal_hold",
    )


def delete_expired(database: Database) -> None:
    """Delete the files that have expired, as their owner would."""
    with read_only(database) as session:
        if not repository.has_expired(session):
            return
    with unit_of_work(database) as session:
        repository.delete_expired(session)


def remove_deleted_bytes(database: Database, settings: Settings) -> None:
    """Let go the bytes of files that were deleted a while ago, unless something else has the same ones or a hold keeps them."""
    grace = timedelta(seconds=settings.deletion_grace_s)
    with read_only(database) as session:
        deleted = [(file.id, file.sha256) for file in repository.list_deleted(session, utc_now() - grace)]
    for file_id, sha256 in deleted:
        if let_go(database, settings, sha256):
            with unit_of_work(database) as session:
                # What is held by now was in use, and is looked at again when the hold has ended.
                if find_hold_on_file(session, file_id) is None:
                    session.get_one(File, file_id).bytes_removed_at = utc_now()


def let_go(database: Database, settings: Settings, sha256: str) -> bool:
    """Remove bytes from storage unless something needs them; say whether nothing is left to do about them.

    Bytes that were stored within the grace of a deletion are left for later: what they belong to may not have its
    row yet.
    """
    with read_only(database) as session:
        if repository.is_in_use(session, sha256):
            return True
    try:
        return storage.discard_older(settings.storage, sha256, settings.deletion_grace_s)
    except StorageUnavailable as error:
        log.warning("the bytes of %s cannot be removed yet: %s", sha256, error.message)
        return False
