"""Checking an uploaded file that was too large to be checked while it was uploaded."""

from app.database import unit_of_work
from app.domain.job import State
from app.errors import JobFailure
from app.files.service import check_stored, describe_problems
from app.models.file import File
from app.work import repository
from worker.context import Context


def check_file(context: Context) -> None:
    """Give the file its status: processed with its count of rows, or error with every problem found."""
    with unit_of_work(context.database) as session:
        file_id: str = context.lease.load(session).args["file"]
        file = session.get(File, file_id)
    if file is None or file.deleted_at is not None:
        raise JobFailure(f"the file {file_id} was deleted before it was checked", code="file_not_found")
    context.lease.move(State.RUNNING)
    rows, problems = check_stored(context.settings, file.sha256)
    context.check()
    with unit_of_work(context.database) as session:
        work = context.lease.load(session)
        file = session.get_one(File, file_id)
        file.rows = None if problems else rows
        file.status = "error" if problems else "processed"
        file.status_details = describe_problems(problems) if problems else None
        repository.move(session, work, State.FINALISING)
        repository.move(session, work, State.SUCCEEDED)
