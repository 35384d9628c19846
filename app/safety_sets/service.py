"""The rules of safety sets: whose rows they may be, and what is checked before one is registered."""

import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from sqlalchemy.orm import Session

from app import storage
from app.auth import Caller
from app.base_models.service import find_base_model
from app.database import Database, read_only, unit_of_work
from app.domain.dataset import Findings, check_anchor_lines, check_training_lines, read_lines
from app.errors import NotFound
from app.files.service import DATA, TRAINING, get_data_file, refuse_rows
from app.models.base import new_id, utc_now
from app.models.base_model import BaseModel
from app.models.safety_set import SafetySet, SetKind
from app.notary.repository import COMMAND_LINE, add_event
from app.safety_sets import repository
from app.safety_sets.schemas import SafetySetCreate
from app.settings import Settings

GENERIC_ANCHORS = Path(__file__).with_name("generic_anchors.jsonl")
"""Requests that any aligned model should decline, so that a new base model has anchors from the start."""

CHECKS: dict[SetKind, Callable[[Iterable[bytes]], Findings]] = {
    "anchors": check_anchor_lines,
    "alignment": check_training_lines,
    "harmful": check_training_lines,
}
PURPOSES: dict[SetKind, tuple[str, ...]] = {
    "anchors": (DATA,),
    "alignment": (DATA, TRAINING),
    "harmful": (DATA, TRAINING),
}


class Rows(NamedTuple):
    """A file of rows that passed its check and is in storage."""

    sha256: str
    number: int


def create_set(database: Database, settings: Settings, caller: Caller, body: SafetySetCreate) -> SafetySet:
    """Register an uploaded file as a set. Raises InvalidTrainingFile with every problem of its rows.

    The rows are read between two transactions, so that nobody waits for them.
    """
    with read_only(database) as session:
        find_base_model(session, body.model)
        file = get_data_file(session, caller.project_id, body.file, *PURPOSES[body.kind])
    with storage.open_stored(settings.storage, file.sha256) as stream:
        rows = Rows(file.sha256, _count_rows(body.kind, stream))
    with unit_of_work(database) as session:
        base = find_base_model(session, body.model)
        return add_set(session, base, body.kind, rows, actor=caller.key_id)


def store_rows(settings: Settings, kind: SetKind, data: BinaryIO) -> Rows:
    """Check a file of rows and store it. Raises InvalidTrainingFile with every problem of it."""
    number = _count_rows(kind, data)
    data.seek(0)
    return Rows(storage.store_stream(settings.storage, data).sha256, number)


def add_set(
    session: Session, base: BaseModel, kind: SetKind, rows: Rows, *, actor: str = COMMAND_LINE
) -> SafetySet:
    """Insert a set; it is the one that new jobs on this base model use from now on."""
    added = SafetySet(
        id=new_id("set_"),
        base_model=base.name,
        kind=kind,
        sha256=rows.sha256,
        rows=rows.number,
        commitment_key=secrets.token_bytes(32),
        created_at=utc_now(),
    )
    session.add(added)
    session.flush()
    add_event(session, "safety_set.registered", actor=actor, subject=added.id, sha256=rows.sha256)
    return added


def add_missing_set(
    session: Session, base: BaseModel, kind: SetKind, rows: Rows, *, actor: str = COMMAND_LINE
) -> SafetySet | None:
    """Insert a set unless the base model has one of this kind already; return it if it was inserted."""
    if repository.get_newest_set(session, base, kind) is not None:
        return None
    return add_set(session, base, kind, rows, actor=actor)


def how_to_register_anchors(base: BaseModel) -> str:
    """Return the commands that give a base model anchors, in words that follow a semicolon."""
    return (
        f"register the 96 prompts that come with Tether with: tether models add {base.name} PATH (run again), or your"
        f" own with: tether anchors add --base {base.name} --data FILE"
    )


def get_set(session: Session, set_id: str) -> SafetySet:
    """Return a set. Raises NotFound."""
    found = repository.get_set(session, set_id)
    if found is None:
        raise NotFound(f"no safety set has the id {set_id!r}", param="set_id")
    return found


def _count_rows(kind: SetKind, stream: BinaryIO) -> int:
    found = CHECKS[kind](read_lines(stream))
    if found.problems:
        raise refuse_rows(found, f"set of kind {kind!r}")
    return found.rows
