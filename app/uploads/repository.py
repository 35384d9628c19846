"""Every query of uploads and their parts, scoped by project."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from app.models.base import new_id, utc_now
from app.models.upload import Upload, UploadPart


def get_upload(session: Session, project_id: str, upload_id: str, *, lock: bool = False) -> Upload | None:
    """Return an upload of the project; with `lock`, nobody else changes it before this transaction ends."""
    query = select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id)
    return session.scalars(query.with_for_update() if lock else query).one_or_none()


def get_part(session: Session, upload: Upload, sha256: str) -> UploadPart | None:
    """Return the part of an upload that has these bytes."""
    return session.scalars(
        select(UploadPart).where(UploadPart.upload_id == upload.id, UploadPart.sha256 == sha256)
    ).one_or_none()


def add_part(session: Session, upload: Upload, sha256: str, size: int) -> UploadPart:
    """Insert a part, and count it. The row of its upload is locked by the caller."""
    part = UploadPart(
        id=new_id("part_"),
        project_id=upload.project_id,
        upload_id=upload.id,
        sha256=sha256,
        size_bytes=size,
        created_at=utc_now(),
    )
    session.add(part)
    upload.received_bytes += size
    upload.received_parts += 1
    return part


def list_parts(session: Session, upload: Upload) -> Sequence[UploadPart]:
    """Return the parts that came, in no order that means anything."""
    return session.scalars(select(UploadPart).where(UploadPart.upload_id == upload.id)).all()


def list_overdue(session: Session, leeway: timedelta) -> Sequence[str]:
    """Return the uploads that expired longer than `leeway` ago and are not marked so yet."""
    return session.scalars(
        select(Upload.id).where(Upload.status == "pending", Upload.expires_at < utc_now() - leeway)
    ).all()


def expire(session: Session, upload_ids: Sequence[str]) -> None:
    """Mark uploads as expired unless they were completed or cancelled meanwhile."""
    session.execute(
        update(Upload)
        .where(Upload.id.in_(upload_ids), Upload.status == "pending")
        .values(status="expired", ended_at=utc_now())
    )


def list_ended_parts(session: Session, before: datetime) -> Sequence[UploadPart]:
    """Return the parts of uploads that ended before a time."""
    return session.scalars(
        select(UploadPart).join(Upload, Upload.id == UploadPart.upload_id).where(Upload.ended_at < before)
    ).all()


def remove_part(session: Session, part_id: str) -> None:
    """Forget a part."""
    session.execute(delete(UploadPart).where(UploadPart.id == part_id))
