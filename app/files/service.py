"""The rules of files: what is checked when, and what is refused."""

import io
import logging
import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO

from sqlalchemy.orm import Session

from app import queue, storage
from app.database import Database, read_only, unit_of_work
from app.domain.dataset import MAX_LINE_BYTES, Problem, check_training_lines
from app.domain.job import WorkKind
from app.errors import Conflict, InvalidRequest, InvalidTrainingFile, NotFound, StorageUnavailable
from app.files import repository
from app.models.base import new_id, utc_now
from app.models.file import File
from app.settings import Settings
from app.work import repository as work_repository

log = logging.getLogger(__name__)

TRAINING = "fine-tune"
RESULTS = "fine-tune-results"
DATA = "user_data"
"""For critics and safety sets. Their rows are checked when they are used, by what they are used for."""


def create_file(
    database: Database, settings: Settings, *, project_id: str, filename: str, purpose: str, stream: BinaryIO
) -> File:
    """Store an upload. A small training file is checked before; a large one is left to a worker. Others are not.

    Raises InvalidTrainingFile with every problem found, and then keeps nothing.
    """
    if purpose not in (TRAINING, DATA):
        raise InvalidRequest(
            f"purpose: found {purpose!r}; this service takes files of the purposes {TRAINING!r} and {DATA!r}",
            param="purpose",
        )
    rows: int | None = None
    size = stream.seek(0, io.SEEK_END)
    if purpose == TRAINING and size <= min(settings.sync_check_bytes, settings.max_file_bytes):
        stream.seek(0)
        rows, problems = check_training_lines(read_lines(stream))
        if problems:
            raise InvalidTrainingFile(describe_problems(problems), param="file")
    stream.seek(0)
    stored = storage.store_stream(settings.storage, stream, max_bytes=settings.max_file_bytes)
    with unit_of_work(database) as session:
        file = add_file(session, project_id=project_id, filename=filename, purpose=purpose, stored=stored)
        file.rows = rows
        if purpose == TRAINING and rows is None:
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


def add_file(
    session: Session, *, project_id: str, filename: str, purpose: str, stored: storage.Stored
) -> File:
    """Insert the row of a stored file. Its name is a label only and never part of a path."""
    label = PurePosixPath(PureWindowsPath(filename).name).name or "file"
    file = File(
        id=new_id("file-"),
        project_id=project_id,
        filename=label[:255],
        purpose=purpose,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
        status="processed",
        commitment_key=secrets.token_bytes(32),
        created_at=utc_now(),
    )
    session.add(file)
    session.flush()
    return file


def check_stored(settings: Settings, sha256: str) -> tuple[int, list[Problem]]:
    """Check the structure of a stored training file in bounded memory."""
    with storage.open_stored(settings.storage, sha256) as file:
        return check_training_lines(read_lines(file))


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines without their ends; a line beyond the limit is cut there and ends the file."""
    while line := file.readline(MAX_LINE_BYTES + 2):
        line = line.rstrip(b"\r\n")
        yield line
        if len(line) > MAX_LINE_BYTES:
            return


def describe_problems(problems: list[Problem], file: str = "training file") -> str:
    """Return one message that lists every problem with its line and path."""
    listed = "; ".join(str(problem) for problem in problems)
    return f"{len(problems)} problem{'s' * (len(problems) > 1)} in the {file}: {listed}"


def get_data_file(session: Session, project_id: str, file_id: str, *purposes: str) -> File:
    """Return a file that a request names for one of these purposes. Raises InvalidRequest."""
    file = repository.get_file(session, project_id, file_id)
    if file is None:
        raise InvalidRequest(
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
    """Forget a file; its bytes go a while later. Raises Conflict while a job that has not ended needs it."""
    file = get_file(session, project_id, file_id)
    job_id = repository.find_unfinished_job(session, file_id)
    if job_id is not None:
        raise Conflict(
            f"the job {job_id} still needs the file {file_id}; cancel the job, or delete the file when it has ended",
            code="file_in_use",
        )
    file.deleted_at = utc_now()


def remove_deleted_bytes(database: Database, settings: Settings) -> None:
    """Let go the bytes of files that were deleted a while ago, unless something else has the same ones.

    Bytes that were stored again within that while are left for later: their upload may not have its row yet.
    """
    grace = timedelta(seconds=settings.deletion_grace_s)
    with read_only(database) as session:
        deleted = [(file.id, file.sha256) for file in repository.list_deleted(session, utc_now() - grace)]
    for file_id, sha256 in deleted:
        with read_only(database) as session:
            needed = repository.is_in_use(session, sha256)
        try:
            if not needed and not storage.discard_older(settings.storage, sha256, settings.deletion_grace_s):
                continue
        except StorageUnavailable as error:
            log.warning("the bytes of the deleted file %s cannot be removed yet: %s", file_id, error.message)
            continue
        with unit_of_work(database) as session:
            session.get_one(File, file_id).bytes_removed_at = utc_now()
