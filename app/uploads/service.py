"""The rules of uploads in parts: what may come, when it is over, and how the parts become a file."""

import hashlib
import io
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, BinaryIO

from sqlalchemy.orm import Session

from app import storage
from app.database import Database, read_only, unit_of_work
from app.errors import Conflict, InvalidRequest, NotFound
from app.files.repository import get_file
from app.files.service import admit_file, check_purpose, check_small, let_go, make_label
from app.models.base import new_id, utc_now
from app.models.file import File
from app.models.upload import Upload, UploadPart
from app.quotas.service import take_storage
from app.settings import Settings
from app.uploads import repository
from app.uploads.schemas import MAX_PARTS, UploadComplete, UploadCreate

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LIFE = timedelta(hours=1)
LEEWAY = timedelta(minutes=10)
"""A completion that began in time may take so long before its upload is given up."""
MAX_PART_BYTES = 64 * 1024 * 1024


def create_upload(session: Session, settings: Settings, project_id: str, body: UploadCreate) -> Upload:
    """Announce a file that will come in parts."""
    check_purpose(body.purpose)
    if body.bytes > settings.max_file_bytes:
        raise InvalidRequest(
            f"bytes: found {body.bytes}; the largest file of this service has {settings.max_file_bytes} bytes"
            " (TETHER_MAX_FILE_BYTES)",
            param="bytes",
        )
    take_storage(session, settings, project_id, body.bytes)
    now = utc_now()
    upload = Upload(
        id=new_id("upload_"),
        project_id=project_id,
        filename=make_label(body.filename),
        purpose=body.purpose,
        size_bytes=body.bytes,
        status="pending",
        expires_after_s=body.expires_after.seconds if body.expires_after else None,
        received_bytes=0,
        received_parts=0,
        created_at=now,
        expires_at=now + LIFE,
    )
    session.add(upload)
    session.flush()
    return upload


def add_part(
    database: Database, settings: Settings, project_id: str, upload_id: str, stream: BinaryIO
) -> UploadPart:
    """Keep a part. The same bytes are the same part, so that a client may send one again.

    The row comes before the bytes: whatever happens after, the bytes of an upload that is over are found and let go.
    """
    size = stream.seek(0, io.SEEK_END)
    if not 0 < size <= MAX_PART_BYTES:
        raise InvalidRequest(
            f"data: found a part of {size} bytes; expected 1 to {MAX_PART_BYTES}. Cut the file into smaller parts",
            param="data",
        )
    storage.check_room(settings.storage, size, settings.disk_reserve_bytes)
    stream.seek(0)
    sha256 = _digest(stream)
    with unit_of_work(database) as session:
        upload = _pending(repository.get_upload(session, project_id, upload_id, lock=True), upload_id)
        part = repository.get_part(session, upload, sha256)
        if part is None:
            # A part that was sent wrongly is left out at the end, so there is room for some of those.
            if upload.received_bytes + size > 2 * upload.size_bytes or upload.received_parts >= MAX_PARTS:
                raise Conflict(
                    f"the upload {upload_id} was announced with {upload.size_bytes} bytes; it has"
                    f" {upload.received_parts} parts of {upload.received_bytes} bytes, and takes no further one of"
                    f" {size}. Complete it, or cancel it and create a new one",
                    code="too_many_parts",
                )
            part = repository.add_part(session, upload, sha256, size)
    stream.seek(0)
    storage.store_stream(settings.storage, stream)
    return part


def complete_upload(
    database: Database, settings: Settings, project_id: str, upload_id: str, body: UploadComplete
) -> tuple[Upload, File]:
    """Make a file of the parts in the order of `part_ids`. The same order again gives the same file.

    Raises InvalidRequest where parts, length or MD5 are not what they should be, and InvalidTrainingFile for bad rows;
    the upload then stays open.
    """
    with read_only(database) as session:
        upload = repository.get_upload(session, project_id, upload_id)
        if upload is not None and upload.status == "completed":
            return upload, _file_of(session, upload, body)
        upload = _pending(upload, upload_id)
        parts = _order(upload, repository.list_parts(session, upload), body.part_ids)
    with _join(settings, parts, body.md5) as stream:
        found = check_small(settings, upload.purpose, upload.size_bytes, stream)
    storage.check_room(settings.storage, upload.size_bytes, settings.disk_reserve_bytes)
    with _join(settings, parts, body.md5) as stream:
        stored = storage.store_stream(settings.storage, stream)
    with unit_of_work(database) as session:
        upload = _found(repository.get_upload(session, project_id, upload_id, lock=True), upload_id)
        if upload.status == "completed":
            return upload, _file_of(session, upload, body)
        if upload.status != "pending":
            raise _is_over(upload)
        file = admit_file(
            session,
            project_id=project_id,
            filename=upload.filename,
            purpose=upload.purpose,
            stored=stored,
            found=found,
            expires_after_s=upload.expires_after_s,
        )
        upload.status = "completed"
        upload.part_ids = body.part_ids
        upload.file_id = file.id
        upload.ended_at = utc_now()
    return upload, file


def cancel_upload(session: Session, project_id: str, upload_id: str) -> Upload:
    """Give up an upload; its parts go a while later. Once more changes nothing. Raises Conflict after completion."""
    upload = _found(repository.get_upload(session, project_id, upload_id, lock=True), upload_id)
    if upload.status == "completed":
        raise Conflict(
            f"the upload {upload_id} was completed and is the file {upload.file_id} now; delete that file instead",
            code="upload_completed",
        )
    if upload.status == "pending":
        upload.status = "cancelled"
        upload.ended_at = utc_now()
    return upload


def clean_up(database: Database, settings: Settings) -> None:
    """Give up uploads that have expired, and let go the parts of those that ended a while ago."""
    with read_only(database) as session:
        overdue = repository.list_overdue(session, LEEWAY)
    if overdue:
        with unit_of_work(database) as session:
            repository.expire(session, overdue)
    grace = timedelta(seconds=settings.deletion_grace_s)
    with read_only(database) as session:
        ended = [(part.id, part.sha256) for part in repository.list_ended_parts(session, utc_now() - grace)]
    for part_id, sha256 in ended:
        if let_go(database, settings, sha256):
            with unit_of_work(database) as session:
                repository.remove_part(session, part_id)


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(storage.CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _found(upload: Upload | None, upload_id: str) -> Upload:
    if upload is None:
        raise NotFound(f"no upload has the id {upload_id!r} in this project", param="upload_id")
    return upload


def _pending(upload: Upload | None, upload_id: str) -> Upload:
    upload = _found(upload, upload_id)
    if upload.status != "pending" or upload.expires_at <= utc_now():
        raise _is_over(upload)
    return upload


def _is_over(upload: Upload) -> Conflict:
    if upload.status in ("completed", "cancelled"):
        return Conflict(
            f"the upload {upload.id} was {upload.status} already; create a new one for another file",
            code=f"upload_{upload.status}",
        )
    return Conflict(
        f"the upload {upload.id} expired at {upload.expires_at:%Y-%m-%d %H:%M:%S} UTC, an hour after it was created;"
        " create a new one and send its parts again",
        code="upload_expired",
    )


def _file_of(session: Session, upload: Upload, body: UploadComplete) -> File:
    """Return the file that an upload became. Raises Conflict where other parts are asked for now."""
    if upload.part_ids != body.part_ids:
        raise Conflict(
            f"the upload {upload.id} was completed with other parts; create a new one for another file",
            code="upload_completed",
        )
    file = get_file(session, upload.project_id, str(upload.file_id))
    if file is None:
        raise NotFound(
            f"the file {upload.file_id} that the upload {upload.id} became was deleted or has expired; send it again",
            param="upload_id",
        )
    return file


def _order(upload: Upload, parts: Sequence[UploadPart], part_ids: Sequence[str]) -> list[UploadPart]:
    """Return the parts as the client orders them. Raises InvalidRequest where they are not the announced file."""
    by_id = {part.id: part for part in parts}
    for index, part_id in enumerate(part_ids):
        if part_id not in by_id:
            raise InvalidRequest(
                f"part_ids[{index}]: the upload {upload.id} has no part {part_id!r}",
                param=f"part_ids[{index}]",
            )
    ordered = [by_id[part_id] for part_id in part_ids]
    size = sum(part.size_bytes for part in ordered)
    if size != upload.size_bytes:
        raise InvalidRequest(
            f"part_ids: these parts have {size} bytes together; the upload was announced with {upload.size_bytes}. Name"
            " every part once, in order, and send what is missing",
            param="part_ids",
        )
    return ordered


def _join(settings: Settings, parts: Sequence[UploadPart], md5: str | None) -> BinaryIO:
    return io.BufferedReader(_Joined(settings.storage, parts, md5), buffer_size=storage.CHUNK_BYTES)


class _Joined(io.RawIOBase):
    """Parts read one behind the other, one open at a time. The MD5 of all, where there is one, is checked at the end."""

    def __init__(self, place: storage.Place, parts: Sequence[UploadPart], md5: str | None) -> None:
        self._place = place
        self._left = iter(parts)
        self._open: BinaryIO | None = None
        self._expected = md5.lower() if md5 else None
        self._md5 = hashlib.md5(usedforsecurity=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        while True:
            if self._open is None:
                part = next(self._left, None)
                if part is None:
                    self._check()
                    return 0
                self._open = storage.open_stored(self._place, part.sha256)
            data = self._open.read(len(view))
            if data:
                view[: len(data)] = data
                if self._expected is not None:
                    self._md5.update(data)
                return len(data)
            self._open.close()
            self._open = None

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
        super().close()

    def _check(self) -> None:
        found = self._md5.hexdigest()
        if self._expected not in (None, found):
            raise InvalidRequest(
                f"md5: found {self._expected}; the parts in this order have {found}. Send again what was damaged, or"
                " mend the order",
                param="md5",
            )
