"""Which rows refer to stored bytes: every such column, for whoever collects what none of them needs.

A test compares the list with the tables, so that a new column with a digest cannot be forgotten here. Whether the bytes of
a file that somebody deletes may go at once is another question, with conditions of its own:
`app.files.repository.is_in_use`.
"""

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session

from app.domain.job import RECORDED, TERMINAL, State
from app.models.base_model import Critic
from app.models.file import File
from app.models.job import Checkpoint, Job
from app.models.safety_set import SafetySet
from app.models.upload import UploadPart
from app.models.work import Work

_DATA = Work.args["data_sha256"].as_string()
_VALIDATION = Work.args["validation_sha256"].as_string()

REFERENCES: dict[str, Select[Any]] = {
    "files.sha256": select(File.sha256).where(File.bytes_removed_at.is_(None)),
    "upload_parts.sha256": select(UploadPart.sha256),
    "jobs.adapter_sha256": select(Job.adapter_sha256),
    "jobs.parent_sha256": select(Job.parent_sha256)
    .join(Work, Work.id == Job.id)
    .where(Work.state.not_in(TERMINAL)),
    "checkpoints.adapter_sha256": select(Checkpoint.adapter_sha256),
    "safety_sets.sha256": select(SafetySet.sha256),
    "work.args.data_sha256": select(_DATA).where(Work.state.not_in(TERMINAL)),
    "work.args.validation_sha256": select(_VALIDATION).where(Work.state.not_in(TERMINAL)),
}
"""Every column with a digest of stored bytes, and the rows of it whose bytes must not go."""
IN_OBJECTS = ("critics.files",)
"""Columns that hold several digests in one object; `_list_in_objects` reads them."""
OF_CHECKPOINTS = ("checkpoints.stored",)
"""Columns whose bytes lie in a place of their job's own; `list_resumable` reads them."""

_NEEDED: dict[str, ColumnElement[bool]] = {
    "files.sha256": File.deleted_at.is_(None),
    "jobs.adapter_sha256": Job.model_deleted_at.is_(None),
    "checkpoints.adapter_sha256": Checkpoint.model_deleted_at.is_(None)
    & Checkpoint.job_id.not_in(select(Work.id).where(Work.state.in_((State.FAILED, State.CANCELLED)))),
}
"""Rows of which the bytes must be there, where those are not all. A part of an upload has its row before its bytes."""


def find_referenced(session: Session, digests: Collection[str]) -> set[str]:
    """Return those of these digests that a row refers to."""
    found = set(digests).intersection(_list_in_objects(session))
    for query in REFERENCES.values():
        left = set(digests) - found
        if left:
            found.update(session.scalars(query.where(query.selected_columns[0].in_(left))))
    return found


def list_needed(session: Session) -> Iterator[tuple[str, str]]:
    """Yield the digest of everything that must be in storage, with the column that says so."""
    for name, query in REFERENCES.items():
        if name == "upload_parts.sha256":
            continue
        there = query.selected_columns[0].is_not(None)
        wanted = query.where(there, _NEEDED[name]) if name in _NEEDED else query.where(there)
        yield from ((sha256, name) for sha256 in session.scalars(wanted))
    yield from ((sha256, "critics.files") for sha256 in _list_in_objects(session))


def _list_in_objects(session: Session) -> Iterator[str]:
    for files in session.scalars(select(Critic.files)):
        yield from files.values()


def list_resumable(session: Session, job_ids: Collection[str]) -> dict[str, list[Checkpoint]]:
    """Return the checkpoints that jobs may still go on from, by job; nothing for a job that has ended or is not known."""
    rows = session.scalars(
        select(Checkpoint)
        .join(Work, Work.id == Checkpoint.job_id)
        .where(Checkpoint.job_id.in_(job_ids), Checkpoint.folder.is_not(None))
        .where(Work.state.not_in(RECORDED))
    )
    found: dict[str, list[Checkpoint]] = {}
    for row in rows:
        found.setdefault(row.job_id, []).append(row)
    return found
