"""Asking for a critic to be fitted."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.orm import Session

from app import queue, storage
from app.auth import Caller
from app.base_models.service import find_base_model
from app.critics import repository
from app.critics.importers import Label, import_rows, load_cold_start
from app.critics.schemas import CriticCreate
from app.database import Database, read_only, unit_of_work
from app.domain.dataset import Row, check_critic_lines, format_rows, parse_rows
from app.domain.job import WorkKind
from app.errors import InvalidRequest, InvalidTrainingFile, NotFound
from app.files.service import DATA, describe_problems, get_data_file, read_lines
from app.keys.service import DEFAULT_PROJECT
from app.models.base import new_id
from app.models.work import Work
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
            session, base_name=body.model, data_sha256=file.sha256, project_id=caller.project_id
        )
        queue.enqueue(session, work.queue, work.id)
        return work


def gather_requests(
    paths: Sequence[Path], *, format_name: str, label: Label | None, cold_start: bool
) -> list[Row]:
    """Return the labelled requests of local files, all in one format, behind those that come with Tether if wanted.

    The format `rows` is the one that uploads have; for the others see `app.critics.importers`. Raises InvalidRequest,
    and InvalidTrainingFile with every problem of a file.
    """
    rows = load_cold_start() if cold_start else []
    for path in paths:
        if format_name != "rows":
            rows += import_rows(path, format_name, label=label)
        elif label is not None:
            raise InvalidRequest("the format rows has labels of its own; leave the label out", param="label")
        else:
            with path.open("rb") as stream:
                _check_rows(stream, f"file {path.name}")
                stream.seek(0)
                rows += parse_rows(read_lines(stream))
    return rows


def store_requests(settings: Settings, rows: Sequence[Row]) -> str:
    """Store labelled requests and return their SHA-256. Raises InvalidTrainingFile with every problem of them."""
    data = io.BytesIO(format_rows(rows))
    _check_rows(data)
    data.seek(0)
    return storage.store_stream(settings.storage, data).sha256


def request_fit(
    session: Session, *, base_name: str, data_sha256: str, project_id: str = DEFAULT_PROJECT
) -> Work:
    """Add the work of fitting a critic on stored requests. The critic will have the id of the work.

    Announcing it is the caller's. Raises InvalidRequest for an unknown base model.
    """
    find_base_model(session, base_name)
    return work_repository.add_work(
        session,
        work_id=new_id("critic_"),
        kind=WorkKind.FIT_CRITIC,
        queue="gpu",
        project_id=project_id,
        args={"base_model": base_name, "data_sha256": data_sha256},
    )


def get_entry(session: Session, critic_id: str) -> repository.Entry:
    """Return a critic, fitted or not. Raises NotFound."""
    entry = repository.get_entry(session, critic_id)
    if entry is None:
        raise NotFound(f"no critic has the id {critic_id!r}", param="critic_id")
    return entry


def _check_rows(stream: BinaryIO, name: str = "file of labelled requests") -> None:
    _, problems = check_critic_lines(read_lines(stream))
    if problems:
        raise InvalidTrainingFile(describe_problems(problems, name), param="file")
