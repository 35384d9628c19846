"""Asking for a critic to be fitted."""

from pathlib import Path

from sqlalchemy.orm import Session

from app import storage
from app.base_models.repository import get_base_model
from app.domain.dataset import check_critic_lines
from app.domain.job import WorkKind
from app.errors import InvalidRequest, InvalidTrainingFile, NotFound
from app.files.service import describe_problems, read_lines
from app.keys.service import DEFAULT_PROJECT
from app.models.work import Work
from app.settings import Settings
from app.work import repository as work_repository


def store_requests(settings: Settings, data: Path) -> storage.Stored:
    """Check a file of labelled requests and store it. Raises InvalidTrainingFile with every problem of it."""
    try:
        with data.open("rb") as file:
            _, problems = check_critic_lines(read_lines(file))
    except OSError as error:
        raise InvalidRequest(f"{data} cannot be read: {error.strerror}", param="data") from error
    if problems:
        raise InvalidTrainingFile(f"{data}: {describe_problems(problems)}", param="data")
    return storage.store_file(settings.storage, data)


def request_fit(session: Session, *, base_name: str, stored: storage.Stored) -> Work:
    """Add the work of fitting a critic on stored requests. Raises NotFound for an unknown base model."""
    if get_base_model(session, base_name) is None:
        raise NotFound(f"no base model is called {base_name!r}; see: tether models list", param="base")
    return work_repository.add_work(
        session,
        kind=WorkKind.FIT_CRITIC,
        queue="gpu",
        project_id=DEFAULT_PROJECT,
        args={"base_model": base_name, "data_sha256": stored.sha256},
    )
