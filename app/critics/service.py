"""Asking for a critic to be fitted."""

import io
from collections.abc import Sequence
from typing import BinaryIO

from sqlalchemy.orm import Session

from app import queue, storage
from app.auth import Caller
from app.base_models.service import find_base_model
from app.critics import repository
from app.critics.importers import ROWS, Source, check_label, import_rows, load_cold_start
from app.critics.schemas import CriticCreate, Pooling
from app.database import Database, read_only, unit_of_work
from app.domain.conversion import Row
from app.domain.dataset import check_critic_lines, format_rows, parse_rows, read_lines
from app.domain.job import WorkKind
from app.domain.safety_spec import DEFAULT_CATEGORY
from app.errors import InvalidRequest, NotFound
from app.files.service import DATA, get_data_file, refuse_rows
from app.keys.service import DEFAULT_PROJECT, ensure_project
from app.models.base import new_id
from app.models.work import Work
from app.notary.repository import COMMAND_LINE
from app.settings import Settings
from app.work import repository as work_repository


def create_critic(database: Database, settings: Settings, caller: Caller, body: CriticCreate) -> Work:
    """Have a critic fitted on an uploaded file. Raises InvalidTrainingFile with every problem of its rows.

    The rows are read between two transactions, so that nobody waits for them.
    """
    with read_only(database) as session:
        find_base_model(session, body.model)
        file = get_data_file(session, caller.project_id, body.file, DATA)
    with storage.open_stored(settings.storage, file.sha256) as stream:
        _check_rows(stream)
    with unit_of_work(database) as session:
        work = request_fit(
            session,
            base_name=body.model,
            data_sha256=file.sha256,
            pooling=body.pooling,
            category=body.category,
            project_id=caller.project_id,
            actor=caller.key_id,
        )
        queue.enqueue(session, work.queue, work.id)
        return work


def gather_requests(sources: Sequence[Source], *, cold_start: bool) -> list[Row]:
    """Return the labelled requests of local files, behind those that come with Tether if wanted.

    The format `rows` is the one that uploads have; for the others see `app.critics.importers`. Raises InvalidRequest,
    and InvalidTrainingFile with every problem of a file.
    """
    rows = load_cold_start() if cold_start else []
    for source in sources:
        if source.format_name == ROWS:
            rows += _read_rows(source)
        else:
            rows += import_rows(source.path, source.format_name, label=source.label)
    return rows


def describe_rows(rows: Sequence[Row]) -> str:
    """Return how many requests, and replies where there are any, of each label these are."""
    replies = [row["label"] for row in rows if row["messages"][-1]["role"] == "assistant"]
    n_harmful = sum(row["label"] for row in rows) - sum(replies)
    n_requests = len(rows) - len(replies)
    said = f"{n_requests} requests read: {n_harmful} harmful, {n_requests - n_harmful} not"
    if replies:
        said += f"; {len(replies)} replies: {sum(replies)} harmful, {len(replies) - sum(replies)} not"
    return said


def store_requests(settings: Settings, rows: Sequence[Row]) -> str:
    """Store labelled requests and return their SHA-256. Raises InvalidTrainingFile with every problem of them."""
    data = io.BytesIO(format_rows(rows))
    _check_rows(data)
    data.seek(0)
    return storage.store_stream(settings.storage, data).sha256


def request_fit(
    session: Session,
    *,
    base_name: str,
    data_sha256: str,
    pooling: Pooling = "mean",
    category: str = DEFAULT_CATEGORY,
    project_id: str = DEFAULT_PROJECT,
    actor: str = COMMAND_LINE,
) -> Work:
    """Add the work of fitting a critic on stored requests. The critic will have the id of the work.

    Announcing it is the caller's. Raises InvalidRequest for an unknown base model.
    """
    find_base_model(session, base_name)
    # The command line fits critics before any server has made the project.
    ensure_project(session)
    return work_repository.add_work(
        session,
        work_id=new_id("critic_"),
        kind=WorkKind.FIT_CRITIC,
        queue="gpu",
        project_id=project_id,
        args={
            "base_model": base_name,
            "data_sha256": data_sha256,
            "pooling": pooling,
            "category": category,
            "actor": actor,
        },
    )


def get_entry(session: Session, critic_id: str) -> repository.Entry:
    """Return a critic, fitted or not. Raises NotFound."""
    entry = repository.get_entry(session, critic_id)
    if entry is None:
        raise NotFound(f"no critic has the id {critic_id!r}", param="critic_id")
    return entry


def _read_rows(source: Source) -> list[Row]:
    check_label(ROWS, source.label)
    try:
        with source.path.open("rb") as stream:
            _check_rows(stream, f"file {source.path.name}")
            stream.seek(0)
            return parse_rows(read_lines(stream))
    except OSError as error:
        raise InvalidRequest(f"{source.path.name} cannot be read: {error.strerror}", param="data") from error


def _check_rows(stream: BinaryIO, name: str = "file of labelled requests") -> None:
    found = check_critic_lines(read_lines(stream))
    if found.problems:
        raise refuse_rows(found, name)
